"""Whether PyTorch is tracing."""

# By name, and not as `torch.compiler.is_compiling`: a function that names the module torch is itself compiled after a
# graph break, and then returns True outside the graph.
from torch._guards import TracingContext
from torch.compiler import is_compiling, is_dynamo_compiling


def in_a_graph() -> bool:
    """Return True if `torch.compile` or `torch.export` is tracing in this thread.

    `is_compiling` holds for the whole process. Other threads, such as that of a DataLoader, are not tracing.
    """
    return is_dynamo_compiling() or (is_compiling() and TracingContext.try_get() is not None)
