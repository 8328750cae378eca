//! `POST fs/rename`: another name for a file or directory, in one step.
//!
//! A symbolic link is renamed itself. What has the new name is replaced: a file by a file, an empty directory by a directory.

use super::{FileError, act, actor::Actor, parse, path};
use crate::api::{Agent, answer::Refusal};
use ::api::files::{Rename, Renamed};
use axum::{Json, body::Bytes, extract::State};
use rustix::io::Errno;
use std::sync::Arc;

pub(super) async fn rename(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<Json<Renamed>, Refusal> {
    let Rename { source, dest, working_dir, as_root } = parse(&body)?;
    let source = path(&agent, &source, working_dir.as_deref()).await?;
    let dest = path(&agent, &dest, working_dir.as_deref()).await?;
    let renamed = Renamed { source: source.as_str().to_owned(), dest: dest.as_str().to_owned() };
    act(&agent, Actor::of(as_root), move |root| {
        let failed = |path: &str, errno| FileError::new("rename", path, errno);
        let place = |path: &super::SpritePath| {
            let (dir, name) = path.split().ok_or_else(|| failed(path.as_str(), Errno::BUSY))?;
            root.place_itself(dir, name).map_err(|errno| failed(path.as_str(), errno))
        };
        let (from, to) = (place(&source)?, place(&dest)?);
        rustix::fs::renameat(&from.dir, from.name.as_str(), &to.dir, to.name.as_str())
            .map_err(|errno| failed(source.as_str(), errno))
    })
    .await?;
    Ok(Json(renamed))
}
