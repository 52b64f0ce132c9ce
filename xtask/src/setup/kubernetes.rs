//! Builds what the cluster tests run, Kubernetes' own servers and helm, from the modules that pin them. A binary is
//! built again when its module changes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use super::Done;
use super::go_module::{self, binary_name};
use crate::progress;
use crate::workspace::{cache_folder, program, root};

/// Modules of tools only, each with its `tool` lines.
const MODULES: [&str; 2] = ["proxy-lab/kubernetes", "proxy-lab/helm"];

/// A binary to build.
struct Binary {
    folder: PathBuf,
    package: String,
    flags: String,
    path: PathBuf,
    /// Holds the key that the binary was built by.
    stamp: PathBuf,
    key: String,
}

impl Binary {
    fn is_built(&self) -> bool {
        self.path.exists() && fs::read_to_string(&self.stamp).is_ok_and(|key| key == self.key)
    }
}

/// Whether all is built.
pub(super) fn present() -> Result<Option<()>> {
    Ok(binaries()?.iter().all(Binary::is_built).then_some(()))
}

/// Builds what is missing; minutes when cold, since Kubernetes' API server is large.
pub(super) fn install(sh: &Shell, done: &mut Done) -> Result<()> {
    let go = program("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.exists()));
    let go = go.context(
        "the cluster tests build Kubernetes from source, which needs Go 1.26 or newer, and there is no `go` on the \
         PATH: get it from https://go.dev/dl/ (unpack into /usr/local, put /usr/local/go/bin on the PATH). Everything \
         else, the demo too, works without",
    )?;
    fs::create_dir_all(cache_folder()?.join("bin"))?;
    let missing: Vec<_> = binaries()?.into_iter().filter(|binary| !binary.is_built()).collect();
    for (index, binary) in missing.iter().enumerate() {
        println!("setup kubernetes: {} of {}, {}", index + 1, missing.len(), binary.package);
        build(sh, &go, binary)?;
        done.say(format!("built {}", binary.path.display()));
    }
    Ok(())
}

fn build(sh: &Shell, go: &Path, binary: &Binary) -> Result<()> {
    let Binary { folder, package, flags, path, .. } = binary;
    let partial = path.with_extension("partial");
    let _folder = sh.push_dir(folder);
    let build = cmd!(sh, "{go} build -trimpath -ldflags {flags} -o {partial} {package}");
    let build = build.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly -buildvcs=false");
    progress::run(&format!("building {package}"), build).context(
        "needs Go 1.26 or newer and, the first time, a module proxy that can be reached (GOPROXY)",
    )?;
    fs::rename(&partial, path).with_context(|| format!("naming {}", path.display()))?;
    fs::write(&binary.stamp, &binary.key).with_context(|| format!("writing {}", binary.stamp.display()))
}

fn binaries() -> Result<Vec<Binary>> {
    let bin = cache_folder()?.join("bin");
    let mut binaries = Vec::new();
    for name in MODULES {
        let folder = root().join(name);
        let path = folder.join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let module = go_module::parse(&text);
        let flags = module.link_flags();
        let mut hasher = DefaultHasher::new();
        (&text, &flags).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        binaries.extend(module.tools.into_iter().map(|package| {
            let name = binary_name(&package).to_owned();
            Binary {
                folder: folder.clone(),
                package,
                flags: flags.clone(),
                path: bin.join(&name),
                stamp: bin.join(format!(".{name}.key")),
                key: key.clone(),
            }
        }));
    }
    Ok(binaries)
}
