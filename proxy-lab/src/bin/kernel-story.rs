//! `kernel-story`: what `cargo xtask kernels` runs as root on each kernel, in a machine that has nothing else
//! to do. One line a step; the first that fails ends it with status 1.

#[path = "../story/mod.rs"]
mod story;

fn main() -> std::process::ExitCode {
    story::tell()
}
