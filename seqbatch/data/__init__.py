"""Data for sequence models: collation and batches for a DataLoader, and long sequences read in chunks."""

from seqbatch.data._bucket_sampler import BucketBatchSampler
from seqbatch.data._chunks_of import Chunk, chunks_of
from seqbatch.data._collate import collate_sequences
from seqbatch.data._encode_chunks import encode_chunks
from seqbatch.data._loss import mean_loss
from seqbatch.data._tracked_loader import TrackedLoader

__all__ = [
    "BucketBatchSampler",
    "Chunk",
    "TrackedLoader",
    "chunks_of",
    "collate_sequences",
    "encode_chunks",
    "mean_loss",
]
