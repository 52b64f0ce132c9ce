//! Kernels ready to boot, kept in the cache folder under their exact version. What is there is used; only
//! `--refresh` looks for a newer build.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use super::{Series, debian, image, modules};

/// A kernel and its modules as files.
pub(super) struct Kernel {
    /// What `uname -r` says.
    pub(super) release: String,
    /// The package's version, which holds the exact upstream version.
    pub(super) version: String,
    /// The uncompressed kernel.
    pub(super) vmlinux: PathBuf,
    /// An initramfs archive with the modules.
    pub(super) modules: PathBuf,
}

/// The kernel of `series`, from the cache if it is there.
pub(super) fn kernel(sh: &Shell, series: Series, cache: &Path, refresh: bool) -> Result<Kernel> {
    let shelf = cache.join("kernels").join(series.to_string());
    sh.create_dir(&shelf)?;
    let present = if refresh { None } else { newest(&shelf)? };
    let folder = match present {
        Some(folder) => folder,
        None => add(sh, series, &shelf)?,
    };
    let read = |name: &str| {
        fs::read_to_string(folder.join(name))
            .with_context(|| format!("reading {name} of {}", folder.display()))
    };
    let release = read("release")?;
    let modules = folder.join(format!("modules-{:016x}.cpio", module_list()));
    if !modules.exists() {
        pack_modules(sh, &folder, &release, &modules)?;
    }
    Ok(Kernel { version: read("version")?, vmlinux: folder.join("vmlinux"), release, modules })
}

/// The folder put there last.
fn newest(shelf: &Path) -> Result<Option<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(shelf)? {
        let path = entry?.path();
        if path.join("vmlinux").exists() {
            folders.push((fs::metadata(path.join("vmlinux"))?.modified()?, path));
        }
    }
    Ok(folders.into_iter().max().map(|(_, path)| path))
}

/// Downloads and unpacks; the folder gets its name when all is in it, so that half a kernel is never used.
fn add(sh: &Shell, series: Series, shelf: &Path) -> Result<PathBuf> {
    let work = shelf.join(format!(".new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    sh.create_dir(&work)?;
    let package = debian::download(sh, series, &work);
    let package = package.inspect_err(|_| drop(fs::remove_dir_all(&work)))?;
    let folder = shelf.join(&package.version);

    let (file, ready) = (&package.file, work.join("ready"));
    let tree = work.join("tree");
    cmd!(sh, "dpkg-deb -x {file} {tree}").quiet().run()?;
    let vmlinux = image::uncompressed(sh, &tree.join("boot").join(format!("vmlinuz-{}", package.release)))?;
    sh.create_dir(&ready)?;
    fs::write(ready.join("vmlinux"), vmlinux)?;
    fs::write(ready.join("release"), &package.release)?;
    fs::write(ready.join("version"), &package.version)?;
    // Kept for the day another module is needed.
    fs::rename(file, ready.join("linux.deb"))?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&ready, &folder).with_context(|| format!("naming {}", folder.display()))?;
    fs::remove_dir_all(&work)?;
    Ok(folder)
}

fn pack_modules(sh: &Shell, folder: &Path, release: &str, to: &Path) -> Result<()> {
    let tree = folder.join(format!(".tree-{}", std::process::id()));
    let package = folder.join("linux.deb");
    cmd!(sh, "dpkg-deb -x {package} {tree}").quiet().run()?;
    let archive = modules::archive(sh, &tree, release);
    fs::remove_dir_all(&tree)?;
    let partial = to.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, archive?)?;
    fs::rename(&partial, to).with_context(|| format!("naming {}", to.display()))
}

/// Another list of modules is another archive.
fn module_list() -> u64 {
    let mut hasher = DefaultHasher::new();
    modules::MODULES.hash(&mut hasher);
    hasher.finish()
}
