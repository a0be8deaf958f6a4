"""Simulated machines: hosts in namespaces, each with a real sshd, and a cloud that starts and ends them.

Everything is inside the namespaces of :mod:`tests.cluster.enclosed`: no packet leaves them. When their first
process ends, the kernel ends all the others and removes the mounts and the networks.
"""
