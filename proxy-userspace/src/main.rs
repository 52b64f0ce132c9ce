//! The `vipr` binary.
fn main() {}
