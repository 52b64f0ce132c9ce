//! Finds and downloads Debian's kernel packages by apt, from the mirror the machine already uses.
//!
//! Every suite gets an apt root of its own, because with several suites in one list their meta packages hide
//! each other, and because nothing of the machine's own package state may be touched. Signatures are checked
//! against Debian's keyring as ever.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use super::Series;

/// A downloaded kernel package.
pub(super) struct Package {
    /// The package file.
    pub(super) file: PathBuf,
    /// What `uname -r` says, such as `6.1.0-56-cloud-amd64`.
    pub(super) release: String,
    /// The package's version, such as `6.1.192-1`: the exact upstream version.
    pub(super) version: String,
}

/// Which of Debian's two archives a suite is in.
#[derive(Clone, Copy, PartialEq)]
enum Archive {
    Main,
    Security,
}

/// Where a series is found: archive, suite, and the package that depends on the newest build there. Names of
/// builds leave the archive with each point release, so none is written down.
fn origins(series: Series) -> &'static [(Archive, &'static str, &'static str)] {
    use Archive::{Main, Security};
    match series {
        Series::V5_10 => &[
            (Security, "bullseye-security", "linux-image-cloud-amd64"),
            (Main, "bullseye", "linux-image-cloud-amd64"),
        ],
        Series::V6_1 => &[
            (Security, "bookworm-security", "linux-image-cloud-amd64"),
            (Main, "bookworm", "linux-image-cloud-amd64"),
        ],
        Series::V6_12 => &[
            (Security, "bookworm-security", "linux-image-6.12-cloud-amd64"),
            (Security, "trixie-security", "linux-image-cloud-amd64"),
            (Main, "trixie", "linux-image-cloud-amd64"),
        ],
    }
}

/// Downloads the newest build of `series` into `folder`.
pub(super) fn download(sh: &Shell, series: Series, folder: &Path) -> Result<Package> {
    let uris = cmd!(sh, "apt-get update --print-uris").quiet().read().context(
        "asking apt for the machine's mirror (the kernels come from Debian packages, so apt is needed)",
    )?;
    let mut failures = Vec::new();
    for &(archive, suite, meta) in origins(series) {
        let Some(mirror) = mirror(&uris, archive) else {
            failures.push(format!("{suite}: apt has no source of Debian's {} archive", archive.name()));
            continue;
        };
        match from_suite(sh, series, &mirror, suite, meta, folder) {
            Ok(package) => return Ok(package),
            Err(error) => failures.push(format!("{suite}: {error:#}")),
        }
    }
    bail!(
        "no kernel {series} to be had:\n  {}\nThe machine's apt sources must name a Debian mirror that can be reached, \
         such as `deb URI bookworm main` and `deb URI bookworm-security main`.",
        failures.join("\n  ")
    )
}

impl Archive {
    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Security => "security",
        }
    }
}

/// The mirror of `archive` among the files apt would fetch in an update, one `'URI' name size` a line. A
/// mirror holds every suite, so that any of Debian's suites in the machine's sources leads to it.
fn mirror(uris: &str, archive: Archive) -> Option<String> {
    const SUITES: [&str; 9] =
        ["bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing"];
    uris.lines().find_map(|line| {
        let uri = line.strip_prefix('\'')?.split('\'').next()?;
        let (mirror, suite) = uri.strip_suffix("/InRelease")?.split_once("/dists/")?;
        let (suite, found) = match suite.strip_suffix("-security") {
            Some(suite) => (suite, Archive::Security),
            None => (suite, Archive::Main),
        };
        (found == archive && SUITES.contains(&suite)).then(|| mirror.to_owned())
    })
}

fn from_suite(
    sh: &Shell,
    series: Series,
    mirror: &str,
    suite: &str,
    meta: &str,
    folder: &Path,
) -> Result<Package> {
    let root = folder.join(format!("apt-{suite}"));
    for name in ["lists/partial", "cache/archives/partial"] {
        sh.create_dir(root.join(name))?;
    }
    let list = root.join("sources.list");
    std::fs::write(&list, format!("deb [arch=amd64{}] {mirror} {suite} main\n", keyring()))?;
    let options = &[
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", root.join("lists").display()),
        format!("Dir::State::status={}", root.join("status").display()),
        format!("Dir::Cache={}", root.join("cache").display()),
        // An archived suite is signed for a week after its last change. Its kernels stay what they are.
        "Acquire::Check-Valid-Until=false".to_owned(),
        // The folder belongs to the caller; apt's own user could not write there.
        "APT::Sandbox::User=root".to_owned(),
        "APT::Architecture=amd64".to_owned(),
    ]
    .map(|option| format!("-o{option}"));
    std::fs::write(root.join("status"), "")?;

    let update = cmd!(sh, "apt-get {options...} --quiet --error-on=any update").quiet().ignore_status();
    let update = update.output()?;
    ensure!(update.status.success(), "{}", String::from_utf8_lossy(&update.stderr).trim());
    let depends = cmd!(sh, "apt-cache {options...} depends {meta}").quiet().ignore_stderr().read()?;
    let name = newest(&depends, series).with_context(|| format!("{meta} leads to no kernel {series}"))?;
    let release = name.strip_prefix("linux-image-").unwrap_or(&name).to_owned();

    println!("downloading {name} from {mirror} ({suite})");
    let _guard = sh.push_dir(&root);
    cmd!(sh, "apt-get {options...} --quiet download {name}").quiet().ignore_stdout().run()?;
    let file = sh
        .read_dir(&root)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt downloaded nothing")?;
    let version = version(&file).with_context(|| format!("the version in {}", file.display()))?;
    Ok(Package { file, release, version })
}

/// apt's own keys if Debian's keyring is not where Debian puts it.
fn keyring() -> String {
    ["gpg", "pgp"]
        .map(|extension| format!("/usr/share/keyrings/debian-archive-keyring.{extension}"))
        .into_iter()
        .find(|path| Path::new(path).exists())
        .map_or_else(String::new, |path| format!(" signed-by={path}"))
}

/// The kernel package among the `Depends:` lines.
fn newest(depends: &str, series: Series) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(&prefix))
        .map(str::to_owned)
}

/// `NAME_VERSION_ARCH.deb`.
fn version(file: &Path) -> Option<String> {
    file.file_stem()?.to_str()?.split('_').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URIS: &str = "\
'https://packages.example/apt/dists/nodistro/InRelease' packages.example_InRelease 0
'http://mirror.example/debian/dists/trixie-updates/InRelease' updates_InRelease 0
'http://mirror.example/debian/dists/trixie/InRelease' main_InRelease 0
'http://mirror.example/debian/dists/trixie/main/binary-amd64/Packages.xz' main_Packages 0
'http://mirror.example/security/dists/trixie-security/InRelease' security_InRelease 0
";

    #[test]
    fn the_machines_own_mirror_is_used() {
        assert_eq!(mirror(URIS, Archive::Main).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(mirror(URIS, Archive::Security).as_deref(), Some("http://mirror.example/security"));
        assert_eq!(mirror("", Archive::Main), None);
    }

    #[test]
    fn a_meta_package_leads_to_a_build_of_the_series_only() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(newest(depends, Series::V6_1).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(depends, Series::V6_12), None);
    }

    #[test]
    fn the_version_is_in_the_file_name() {
        let file = Path::new("/x/linux-image-6.1.0-56-cloud-amd64_6.1.192-1_amd64.deb");
        assert_eq!(version(file).as_deref(), Some("6.1.192-1"));
    }
}
