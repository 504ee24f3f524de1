"""What vendors' tools print, read into plain values: text in, frozen values out, nothing else.

Every reader takes text as it came from a device: with ANSI colours, carriage returns, log prefixes, noise between the lines
that count, and lines of any length. What is no output of its tool raises :class:`edgekit.core.errors.DeviceError`.
"""
