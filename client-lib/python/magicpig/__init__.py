"""magicpig: the Python client of magicpigd.

    with magicpig.Client() as client, client.queue() as queue:
        context = client.create("book", magicpig.Spec([magicpig.Layer(query_heads=8, kv_heads=2, d_k=64)] * layers))
        queue.append(context, layer, 0, k, v)
        queue.commit(context, 0, token_ids, seal=True)
        result = queue.attend(context, layer, q, proposal="signature", budget=.01, begin=4)
        magicpig.merge(window_out, window_lse, result.out, result.lse)

`magicpig.transformers` runs Hugging Face models on it.
"""

from .client import Client, Context
from .errors import (
    AccessDenied,
    Again,
    Busy,
    Corrupt,
    Error,
    Exists,
    Forked,
    InputOutput,
    InvalidArgument,
    LimitReached,
    Lost,
    NoDaemon,
    NoLease,
    NotFinite,
    NotFound,
    NotSupported,
    OutOfMemory,
    OutOfRange,
    OverQuota,
    PoolFull,
    ProtocolError,
    Retry,
    Shutdown,
    TimedOut,
    VersionMismatch,
)
from .merging import merge, merge_error
from .queue import Queue
from .records import (
    AttendResult,
    ClientInfo,
    Completion,
    ContextInfo,
    DaemonStatus,
    DiskResult,
    DrainState,
    GcResult,
    Head,
    Layer,
    Quota,
    SavedInfo,
    Spec,
    Verification,
)

__version__ = "0.1.0"
