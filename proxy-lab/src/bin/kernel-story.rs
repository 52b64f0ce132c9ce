//! `kernel-story`: what `cargo xtask kernels` runs as root on each kernel, in a machine that has nothing else
//! to do. One line a step; the first that fails ends it with status 1.

#[path = "../story/mod.rs"]
mod story;

fn main() -> std::process::ExitCode {
    // The lab's processes and the node's dataplane are this program too.
    proxy_lab::role::play_if_asked().or_else(story::act_if_asked).unwrap_or_else(story::tell)
}
