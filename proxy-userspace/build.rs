//! Embeds the BPF object that `cargo xtask build-ebpf` made. Without one the agent says so when it is run, and plain
//! `cargo check` works.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=VIPR_EBPF_OBJECT");
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let object = env::var_os("VIPR_EBPF_OBJECT")
        .map_or_else(|| workspace.join("target/bpf/vipr-ebpf.o"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("vipr-ebpf.o");
    let bytes = fs::read(&object).unwrap_or_else(|_| {
        println!("cargo:warning=no BPF object at {}: run `cargo xtask build-ebpf`", object.display());
        Vec::new()
    });
    fs::write(&out, bytes).expect("OUT_DIR can be written");
}
