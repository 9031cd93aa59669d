"""Listeners of events: the log, the heartbeat, the progress shown to people, and the trackers.

Each is called with every event and takes what concerns it. They know nothing of checkpoints or validation, only of the
records those emit. The trade-off: no common base class; a listener is anything that can be called with an event.
"""
