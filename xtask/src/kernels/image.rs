//! Takes the uncompressed kernel out of a bzImage: given an ELF file with a PVH entry, qemu skips the
//! decompression, which costs seconds without KVM.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

/// The kernel inside the bzImage at `path`, as an ELF file.
pub(super) fn uncompressed(sh: &Shell, path: &Path) -> Result<Vec<u8>> {
    let image = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let payload = payload(&image).with_context(|| format!("{} as a bzImage", path.display()))?;

    let packed = path.with_extension("packed");
    std::fs::write(&packed, payload.packed)?;
    let tool = payload.tool;
    // What follows the stream (padding, the length) makes the tools complain; the length below decides.
    let unpacked = cmd!(sh, "{tool} -dc {packed}").quiet().ignore_status().ignore_stderr().output();
    std::fs::remove_file(&packed)?;
    let elf = unpacked.with_context(|| format!("running {tool}"))?.stdout;
    ensure!(elf.starts_with(b"\x7fELF"), "{tool} did not find a kernel in {}", path.display());
    ensure!(elf.len() == payload.length, "{tool} gave {} bytes of {}", elf.len(), payload.length);
    Ok(elf)
}

#[derive(Debug, PartialEq)]
struct Payload<'a> {
    packed: &'a [u8],
    tool: &'static str,
    length: usize,
}

/// Finds the compressed kernel by the header's words (kernel documentation, arch/x86/boot: `setup_sects` at
/// 0x1f1, `payload_offset` at 0x248, `payload_length` at 0x24c, little endian). Its last four bytes are the
/// uncompressed length.
fn payload(image: &[u8]) -> Result<Payload<'_>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "no boot header");
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes")) as usize;
    ensure!(image.len() > 0x250, "the boot header is cut off");
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248);
    let end = start + word(0x24c);
    ensure!(end <= image.len() && end - start > 4, "the payload is cut off");
    let tool = match image[start..end] {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0xfd, b'7', b'z', b'X', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("a compression that is not known (lz4, xz, zstd and gzip are)"),
    };
    Ok(Payload { packed: &image[start..end - 4], tool, length: word(end - 4) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_header_says_where_the_kernel_is_and_how_long_it_becomes() {
        let image = image(b"\x28\xb5\x2f\xfdpacked\x00\x01\x00\x00");
        let expected = Payload { packed: b"\x28\xb5\x2f\xfdpacked", tool: "zstd", length: 256 };
        assert_eq!(payload(&image).unwrap(), expected);
    }

    #[test]
    fn what_is_no_kernel_is_told_so() {
        assert!(payload(b"short").unwrap_err().to_string().contains("no boot header"));
        let mut cut = image(b"\x28\xb5\x2f\xfdpacked\x00\x01\x00\x00");
        cut.pop();
        assert!(payload(&cut).unwrap_err().to_string().contains("cut off"));
        assert!(payload(&image(b"unknown!")).unwrap_err().to_string().contains("compression"));
    }
}
