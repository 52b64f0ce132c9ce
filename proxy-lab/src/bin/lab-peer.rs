//! `lab-peer`: started by labs, never by hand; see [`proxy_lab::role`].

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_lab::role::play_if_asked().unwrap_or_else(|| {
        eprintln!("lab-peer is started by a lab: there is nothing to do for it here");
        ExitCode::FAILURE
    })
}
