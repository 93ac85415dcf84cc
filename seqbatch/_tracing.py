"""Whether PyTorch makes a graph of what is called."""

# By name, and not as `torch.compiler.is_compiling`: a function that names the module torch is itself compiled, and says
# yes, where a graph is broken off and this is called outside.
from torch._guards import TracingContext
from torch.compiler import is_compiling, is_dynamo_compiling


def in_a_graph() -> bool:
    """Tell whether `torch.compile` or `torch.export` makes a graph of what this thread calls.

    `is_compiling` tells of the whole process; other threads, as that of a DataLoader, must not be told of a graph that
    is made meanwhile.
    """
    return is_dynamo_compiling() or (is_compiling() and TracingContext.try_get() is not None)
