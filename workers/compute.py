"""Tasks that compute: images, reports, hashes, models. One process for each core.

A process that dies takes only its own task along, and its memory goes back to the system.
"""

queues = ("compute",)
pool = "process"
# As many processes as cores. In a container with a CPU limit give `-c`: the kernel's count of
# cores ignores the limit, and too many processes only wait for each other.
concurrency = 0
# Long tasks get a longer warm stop; every supervisor in this directory waits longer than this.
grace_s = 60
max_tasks_per_child = 1_000
max_memory_per_child_mb = 1_024
