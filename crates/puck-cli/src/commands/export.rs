//! `puck export`: a sprite as one file.

use crate::{client::Parts, context::Context, exit::Exit, output, spinner};
use anyhow::Context as _;
use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

/// Write a sprite, with its checkpoints, into one file
///
/// The file holds the sprite's data as it is, not encrypted. The sprite goes on meanwhile. `puck import` makes a sprite of the file,
/// here or elsewhere.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck export web web.tar\n  puck export web - | ssh host puck import - web"
)]
pub struct Export {
    /// The sprite
    sprite: String,

    /// The file, which must not be there yet; - is standard output
    file: PathBuf,
}

impl Export {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let name = context.named(Some(&self.sprite))?;
        let to_stdout = self.file == Path::new("-");
        anyhow::ensure!(
            !to_stdout || !io::stdout().is_terminal(),
            "standard output is a terminal: name a file, or pass it on"
        );
        anyhow::ensure!(
            to_stdout || !self.file.exists(),
            "{} is there already",
            self.file.display()
        );
        let exporting = async {
            let parts = client.export_sprite(&name).await?;
            if to_stdout {
                copy(parts, &mut io::stdout().lock()).await
            } else {
                save(parts, &self.file).await
            }
        };
        let bytes = spinner::during(format!("Exporting {name}"), exporting).await;
        let bytes = bytes.with_context(|| format!("export {name}"))?;
        if !to_stdout {
            output::line(&format!("{bytes} bytes"))?;
        }
        Ok(Exit::SUCCESS)
    }
}

/// Writes a file that has its name only when it is whole.
async fn save(parts: Parts, path: &Path) -> anyhow::Result<u64> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".puck-export-")
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .with_context(|| format!("write {}", path.display()))?;
    let bytes = copy(parts, file.as_file_mut()).await?;
    file.as_file().sync_all().with_context(|| format!("write {}", path.display()))?;
    file.persist_noclobber(path).with_context(|| format!("write {}", path.display()))?;
    Ok(bytes)
}

async fn copy(mut parts: Parts, out: &mut dyn Write) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while let Some(part) = parts.next().await? {
        out.write_all(&part).context("write")?;
        bytes += part.len() as u64;
    }
    out.flush().context("write")?;
    Ok(bytes)
}
