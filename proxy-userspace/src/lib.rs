//! vipr: the agent and its command line, as a library.
