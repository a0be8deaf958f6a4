"""Machines that are none: hosts in namespaces with a real sshd, and a cloud that lends them.

Everything is inside the namespaces of :mod:`tests.cluster.enclosed`: no packet leaves it, and when its first
process ends, in whatever way, the kernel ends all the others and forgets the mounts and the networks.
"""
