"""Options that trade time for memory."""

from __future__ import annotations

from pathlib import Path

from simplewan.options.declare import Group, option

_GROUP = "enable_group_offload"


class MemoryOptions(Group):
    offload_during_startup: bool = option(
        False,
        restart_safe=True,
        help="Always so here: text encoder and VAE are on the device only while they encode. Kept for old files.",
    )
    enable_group_offload: bool = option(
        False, later="streaming weights from the CPU", help="Hold frozen blocks in CPU memory and stream them in."
    )
    group_offload_type: str = option(
        "block_level", choices=("block_level", "leaf_level"), applies=_GROUP, help="What is streamed as one."
    )
    group_offload_blocks_per_group: int = option(
        1, minimum=1, unit="blocks", applies=_GROUP, help="Blocks that are streamed together."
    )
    group_offload_use_stream: bool = option(
        False, applies=_GROUP, help="Copy on a stream of its own, beside the computation (CUDA only)."
    )
    group_offload_to_disk_path: Path | None = option(
        None, applies=_GROUP, help="Folder that holds the weights instead of CPU memory."
    )
    enable_model_cpu_offload: bool = option(
        False, later="moving whole models to the CPU", help="Move a model to the CPU while it is not needed."
    )
    enable_chunked_feed_forward: bool = option(
        False, later="feed-forward in chunks", help="Run the feed-forward layers in chunks of the tokens."
    )
    feed_forward_chunk_size: int | None = option(
        None,
        minimum=1,
        applies="enable_chunked_feed_forward",
        help="Size of a chunk: smaller saves more memory and takes more time; none is automatic. "
        "WAN_FEED_FORWARD_CHUNK_SIZE sets it, and switches chunking on.",
    )
