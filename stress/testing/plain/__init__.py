"""The standard library's threads, locks, queues and clocks under control of the scheduler, for the
tasks of an exploration and for nobody else in the process."""
