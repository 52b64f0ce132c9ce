//! The decisions, pure. They read through three traits, which the programs implement with maps and helpers, and tests
//! and `explain` with ordinary collections.
