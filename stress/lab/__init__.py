"""The laboratory: boots a real kernel under emulation, runs real virtual machines on its TDP MMU,
records them, and judges the recordings.

`workloads` says what can be run, `supplies` fetches what a boot needs, `initramfs` makes what is
booted beside the kernel, `emulator` boots it, `session` does it all and judges.
"""
