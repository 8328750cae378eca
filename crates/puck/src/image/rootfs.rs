//! Makes the tree of an image with `mmdebstrap`.
//!
//! All times in it are at most the mirror's, and the environment of the build is fixed, so that the same mirror state gives the
//! same tree on any host.

use super::{Error, Progress, Recipe, process, recipe, sources};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};
use tokio::process::Command;

/// The time that programs of the build believe it is, where they ask: the day of the release. Shown in `/etc/shadow`.
const BUILD_EPOCH: &str = "1686355200";

/// Files of packages that no image has. Sprites that install packages get theirs whole.
const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];

/// Variables of this process that the build needs: how to reach the mirror.
const PASSED_ON: &[&str] = &["http_proxy", "https_proxy", "no_proxy"];

/// A finished tree.
#[derive(Debug)]
pub(super) struct Root {
    /// Where.
    pub(super) directory: PathBuf,
    /// The mirror's time, in Unix seconds: the newest that a file has.
    pub(super) epoch: i64,
    /// What is installed: `NAME VERSION`.
    pub(super) packages: Vec<String>,
}

/// Makes the tree in `build`, which must be empty.
pub(super) async fn make(
    recipe: &Recipe,
    build: &Path,
    progress: &Progress,
) -> Result<Root, Error> {
    if !recipe.sources.is_empty() && !Path::new(sources::KEYRING).is_file() {
        return Err(Error::Missing {
            program: sources::KEYRING,
            package: "debian-archive-keyring",
        });
    }
    bring_along(recipe, build)?;
    let directory = build.join("root");
    process::run("mmdebstrap", &mut mmdebstrap(recipe, build, &directory), |line| {
        if let Some(step) = line.strip_prefix("I: ") {
            progress.step(step.lines().next().unwrap_or_default());
        }
    })
    .await?;
    progress.step("tidying the tree");
    remove_devices(&directory.join("dev"))?;
    let epoch = read(&build.join("epoch"))?;
    let epoch = epoch.trim().parse().map_err(|_| not_readable(&build.join("epoch")))?;
    clamp_times(&directory, epoch).await?;
    let packages = read(&build.join("packages"))?.lines().map(str::to_owned).collect();
    Ok(Root { directory, epoch, packages })
}

/// Writes what the customizing script takes from the build directory.
fn bring_along(recipe: &Recipe, build: &Path) -> Result<(), Error> {
    write(&build.join("customize.sh"), recipe::CUSTOMIZE)?;
    write(&build.join("debian.sources"), &recipe.sources)?;
    write(&build.join("pip.conf"), &recipe.pip_conf)?;
    let certificates = build.join("certificates");
    fs::create_dir(&certificates)
        .map_err(|source| Error::Cache { path: certificates.clone(), source })?;
    for (number, certificate) in recipe.certificates.iter().enumerate() {
        write(&certificates.join(format!("host-{number:02}.crt")), certificate)?;
    }
    Ok(())
}

fn mmdebstrap(recipe: &Recipe, build: &Path, directory: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command.envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C.UTF-8"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("SOURCE_DATE_EPOCH", BUILD_EPOCH),
        // The order of a set in a compiled Python module follows the hashes.
        ("PYTHONHASHSEED", "0"),
    ]);
    command.env("PUCK_BUILD", build);
    command.args(["--mode=root", "--variant=apt", "--format=directory"]);
    command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""]);
    command.args(recipe.apt_options.iter().map(|line| format!("--aptopt={line}")));
    command.args(EXCLUDED.iter().map(|line| format!("--dpkgopt={line}")));
    command.arg(format!("--include={}", recipe::PACKAGES.join(",")));
    command.arg("--customize-hook=sh \"$PUCK_BUILD/customize.sh\" \"$1\"");
    command.arg(recipe::SUITE).arg(directory);
    if !recipe.sources.is_empty() {
        command.arg(build.join("debian.sources"));
    }
    command
}

/// A machine has devices of its own, and an image must not bring any.
fn remove_devices(dev: &Path) -> Result<(), Error> {
    let failed = |source| Error::Cache { path: dev.to_owned(), source };
    fs::remove_dir_all(dev).map_err(failed)?;
    fs::create_dir(dev).map_err(failed)
}

/// Gives what the build itself wrote the mirror's time. Files of packages are older and keep theirs.
async fn clamp_times(directory: &Path, epoch: i64) -> Result<(), Error> {
    let time = format!("@{epoch}");
    let mut find = Command::new("find");
    find.arg(directory).args(["-xdev", "-newermt", &time]);
    find.args(["-exec", "touch", "--no-dereference", "--date", &time, "{}", "+"]);
    process::run("find", &mut find, |_| {}).await
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::Cache { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Cache { path: path.to_owned(), source })
}

fn not_readable(path: &Path) -> Error {
    Error::Cache { path: path.to_owned(), source: io::Error::from(io::ErrorKind::InvalidData) }
}
