//! `puck cp`: files and directories into a sprite and out of it.
//!
//! Everything travels as a tar stream on a command's standard input or output, so modes, times and links are kept and memory
//! does not grow with what is copied. In the sprite its own `tar` works as the user `sprite`. Here the stream is what a stranger
//! sends: nothing of it is written outside of the destination, and devices and the like are refused.
//!
//! What arrives gets its name when all of it is there. Only where a directory of the name exists already does it fill up as
//! things come.

use crate::{
    client::Client,
    context::Context,
    exec::{self, Streams},
    exit::{Exit, UsageError},
    spinner,
};
use anyhow::Context as _;
use api::{exec::ExecQuery, name::SpriteName};
use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};
use tokio::io::{duplex, sink};
use tokio_util::io::SyncIoBridge;

/// What may be on the way between the stream and the archive.
const PIPE_BYTES: usize = 256 * 1024;

/// In the sprite: unpacks standard input. `$1` is the destination, `$2` the name of what comes, `$3` is set if the destination must be
/// a directory.
const RECEIVE: &str = r#"set -e
case $1 in */) into=1;; *) into=$3;; esac
if [ -d "$1" ]; then dir=$1
elif [ -n "$into" ]; then echo "$1: no such directory" >&2; exit 1
else dir=$(dirname -- "$1"); name=$(basename -- "$1"); fi
[ -d "$dir" ] || { echo "$dir: no such directory" >&2; exit 1; }
[ -x "$dir" ] && [ -w "$dir" ] || { echo "$dir: permission denied" >&2; exit 1; }
cd -- "$dir"
target=${name:-$2}
if [ -d "./$target" ] && [ ! -L "./$target" ]; then
  exec tar -x --no-same-owner -p --strip-components=1 -C "./$target"
fi
tmp=$(mktemp -d ./.puck-cp.XXXXXX)
trap 'rm -rf -- "$tmp"' EXIT
tar -x --no-same-owner -p -C "$tmp"
mv -fT -- "$tmp/$2" "./$target"
"#;

/// In the sprite: packs `$1` to standard output.
const SEND: &str = r#"set -e
[ -e "$1" ] || [ -L "$1" ] || { echo "$1: no such file or directory" >&2; exit 1; }
cd -- "$(dirname -- "$1")"
exec tar -c -- "$(basename -- "$1")"
"#;

/// Copy files and directories into a sprite, or out of it
///
/// One side is SPRITE:PATH, or :PATH for the sprite of -s or of the nearest `.sprite` file; a relative PATH starts at the home directory. As
/// with `cp`, what is copied goes into DESTINATION if that is a directory, and takes its name otherwise. Directories are copied whole. Modes, times and symbolic
/// links are kept; owners are not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck cp ./src web:\n  puck cp web:app/data.csv .\n  \
                        puck cp -s web notes.txt :/tmp/n.txt\n  puck cp a.txt b.txt web:docs/")]
pub struct Cp {
    /// What to copy; a local path with `:` in it is written as ./PATH
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<Location>,

    /// Where to
    destination: Location,

    /// Copy directories, which is done anyway
    #[arg(short, long, hide = true)]
    recursive: bool,
}

/// A place here or in a sprite.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    Local(PathBuf),
    /// The sprite, if it is named, and the path.
    Remote(Option<String>, String),
}

impl FromStr for Location {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            Some((sprite, path)) if !sprite.contains(['/', '.']) => {
                let sprite = Some(sprite.to_owned()).filter(|sprite| !sprite.is_empty());
                Self::Remote(sprite, path.to_owned())
            }
            _ => Self::Local(text.into()),
        })
    }
}

impl Cp {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let is_one = self.sources.len() == 1;
        for source in &self.sources {
            let copied = match (source, &self.destination) {
                (Location::Local(from), Location::Remote(sprite, to)) => {
                    let sprite = sprite_of(context, sprite.as_deref())?;
                    upload(&client, &sprite, from, to, is_one)
                        .await
                        .with_context(|| format!("copy {} to {sprite}", from.display()))
                }
                (Location::Remote(sprite, from), Location::Local(to)) => {
                    let sprite = sprite_of(context, sprite.as_deref())?;
                    download(&client, &sprite, from, to, is_one)
                        .await
                        .with_context(|| format!("copy {from} from {sprite}"))
                }
                (Location::Local(_), Location::Local(_)) => {
                    Err(UsageError("one side must be SPRITE:PATH".into()).into())
                }
                (Location::Remote(..), Location::Remote(..)) => Err(UsageError(
                    "only one side can be in a sprite; copy through this host".into(),
                )
                .into()),
            };
            match copied? {
                Exit::SUCCESS => {}
                exit => return Ok(exit),
            }
        }
        Ok(Exit::SUCCESS)
    }
}

fn sprite_of(context: &Context, name: Option<&str>) -> anyhow::Result<SpriteName> {
    Ok(match name {
        Some(name) => context.named(Some(name))?,
        None => context.sprite()?,
    })
}

async fn upload(
    client: &Client,
    sprite: &SpriteName,
    from: &Path,
    to: &str,
    is_one: bool,
) -> anyhow::Result<Exit> {
    let metadata = fs::symlink_metadata(from)?;
    // What `.` or `..` is called is known only when it is resolved.
    let name = match from.file_name() {
        Some(name) => name.to_owned(),
        None => fs::canonicalize(from)?.file_name().context("it has no name")?.to_owned(),
    };
    let name = name.into_string().map_err(|_| anyhow::anyhow!("its name is not UTF-8"))?;
    let to = if to.is_empty() { "." } else { to };
    let into = if is_one { "" } else { "1" };
    let (theirs, ours) = duplex(PIPE_BYTES);
    let (source, packed) = (from.to_owned(), name.clone());
    let packing = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(SyncIoBridge::new(ours));
        archive.follow_symlinks(false);
        if metadata.is_dir() {
            archive.append_dir_all(&packed, &source)?;
        } else {
            archive.append_path_with_name(&source, &packed)?;
        }
        archive.into_inner()?.shutdown()
    });
    let streams =
        Streams { stdin: Box::new(theirs), stdout: Box::new(sink()), ..Streams::of_process() };
    let query = script(RECEIVE, &[to, &name, into]);
    let running = exec::run_with(client, sprite, &query, streams);
    let exit = spinner::during(format!("Copying {}", from.display()), running).await?;
    // If it was refused there, that is why nothing more could be packed here.
    if exit == Exit::SUCCESS {
        packing.await?.context("read it")?;
    }
    Ok(exit)
}

async fn download(
    client: &Client,
    sprite: &SpriteName,
    from: &str,
    to: &Path,
    is_one: bool,
) -> anyhow::Result<Exit> {
    let from = if from.is_empty() { "." } else { from };
    let is_dir = to.is_dir();
    if !is_dir && (!is_one || to.as_os_str().as_encoded_bytes().ends_with(b"/")) {
        anyhow::bail!("{}: no such directory", to.display());
    }
    let parent = if is_dir { to } else { to.parent().unwrap_or(Path::new("")) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let scratch = tempfile::Builder::new().prefix(".puck-cp-").tempdir_in(parent);
    let scratch = scratch.with_context(|| format!("write to {}", parent.display()))?;
    let (theirs, ours) = duplex(PIPE_BYTES);
    let place = scratch.path().to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(SyncIoBridge::new(ours), &place));
    let no_input = Box::new(tokio::io::empty());
    let streams = Streams { stdin: no_input, stdout: Box::new(theirs), ..Streams::of_process() };
    let query = script(SEND, &[from]);
    let running = exec::run_with(client, sprite, &query, streams);
    let exit = spinner::during(format!("Copying {from}"), running).await?;
    if exit != Exit::SUCCESS {
        return Ok(exit);
    }
    let came = unpacking.await?.context("unpack it")?;
    let name = came.file_name().context("the sprite sent nothing")?;
    let target = if is_dir { to.join(name) } else { to.to_owned() };
    take_place(&came, &target).with_context(|| format!("write {}", target.display()))?;
    Ok(exit)
}

/// Unpacks what a sprite sends: one file or directory. Returns where it is.
fn unpack(stream: impl io::Read, place: &Path) -> io::Result<PathBuf> {
    let mut archive = tar::Archive::new(stream);
    archive.set_preserve_permissions(true);
    let mut top: Option<PathBuf> = None;
    let refused = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            return refused("the sprite sent something that is no file, directory or link");
        }
        // `./x` for `x`, as `tar` calls it where the directory itself is copied.
        let path = entry.path()?.into_owned();
        let first = path.components().next().map(|part| place.join(part));
        if first.is_none() || top.as_ref().is_some_and(|top| Some(top) != first.as_ref()) {
            return refused("the sprite sent more than was asked for");
        }
        top = first;
        // Writes nothing outside of the place, also not through links.
        if !entry.unpack_in(place)? {
            return refused("the sprite sent a path that leads elsewhere");
        }
    }
    top.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the sprite sent nothing"))
}

/// Moves what came to its name. A directory that is there already takes in what is in it.
fn take_place(came: &Path, target: &Path) -> io::Result<()> {
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !is_dir(came) || !is_dir(target) {
        return fs::rename(came, target);
    }
    for entry in fs::read_dir(came)? {
        let entry = entry?;
        take_place(&entry.path(), &target.join(entry.file_name()))?;
    }
    Ok(())
}

fn script(text: &str, arguments: &[&str]) -> ExecQuery {
    let words = ["sh", "-c", text, "puck-cp"].into_iter().chain(arguments.iter().copied());
    ExecQuery {
        cmd: words.map(str::to_owned).collect(),
        path: Some("sh".to_owned()),
        stdin: true,
        ..ExecQuery::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, take_place, unpack};
    use std::{fs, io};

    #[test]
    fn a_colon_makes_a_place_in_a_sprite() {
        let remote = |sprite: &str, path: &str| {
            Location::Remote(
                Some(sprite.to_owned()).filter(|sprite| !sprite.is_empty()),
                path.into(),
            )
        };
        for (text, location) in [
            ("web:", remote("web", "")),
            ("web:a:b", remote("web", "a:b")),
            (":/tmp", remote("", "/tmp")),
            ("a.txt", Location::Local("a.txt".into())),
            ("./a:b", Location::Local("./a:b".into())),
            ("dir/a:b", Location::Local("dir/a:b".into())),
        ] {
            assert_eq!(text.parse::<Location>(), Ok(location), "{text}");
        }
    }

    fn entry(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        archive.append(&header, io::empty()).unwrap();
    }

    #[test]
    fn a_hostile_stream_writes_nothing_elsewhere() {
        use tar::EntryType as Kind;
        let outside = tempfile::tempdir().unwrap();
        let elsewhere = outside.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let away = elsewhere.to_str().unwrap();
        for entries in [
            &[(Kind::Regular, "../elsewhere/x", "")][..],
            &[(Kind::Regular, "a", ""), (Kind::Regular, "b", "")],
            &[
                (Kind::Directory, "a", ""),
                (Kind::Symlink, "a/link", away),
                (Kind::Regular, "a/link/x", ""),
            ],
            &[(Kind::Symlink, "a", away), (Kind::Regular, "a/x", "")],
            &[(Kind::Directory, "a", ""), (Kind::Link, "a/x", "../../elsewhere/file")],
            &[(Kind::Fifo, "a", "")],
            &[(Kind::Char, "a", "")],
            &[],
        ] {
            let mut archive = tar::Builder::new(Vec::new());
            for (kind, path, link) in entries {
                entry(&mut archive, *kind, path, link);
            }
            let place = outside.path().join("place");
            fs::create_dir(&place).unwrap();
            fs::write(elsewhere.join("file"), "untouched").unwrap();
            let unpacked = unpack(&archive.into_inner().unwrap()[..], &place);
            assert!(unpacked.is_err(), "{entries:?}: {unpacked:?}");
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "{entries:?}");
            fs::remove_dir_all(&place).unwrap();
        }
    }

    #[test]
    fn directories_are_joined_and_files_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (came, target) = (dir.path().join("came"), dir.path().join("target"));
        fs::create_dir_all(came.join("sub")).unwrap();
        fs::create_dir_all(target.join("sub")).unwrap();
        for (path, text) in
            [("came/sub/a", "new"), ("target/sub/a", "old"), ("target/sub/b", "kept")]
        {
            fs::write(dir.path().join(path), text).unwrap();
        }
        take_place(&came, &target).unwrap();
        let read = |path: &str| fs::read_to_string(target.join(path)).unwrap();
        assert_eq!((read("sub/a").as_str(), read("sub/b").as_str()), ("new", "kept"));
    }
}
