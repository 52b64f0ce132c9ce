//! What both halves of vipr agree on.
#![no_std]
