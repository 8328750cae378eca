//! Why something about a machine or its host failed.

use std::path::PathBuf;

/// Why something about a machine or its host failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host cannot run machines as it is.
    #[error("this host cannot run machines: {missing}; {fix}")]
    Prerequisite {
        /// What is not there.
        missing: String,
        /// What a person can do about it.
        fix: String,
    },
    /// A settings value is not usable.
    #[error("{what} is not usable: {reason}")]
    Settings {
        /// Which value.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// An action on the host failed.
    #[error("{action} failed")]
    Host {
        /// What was attempted.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A command of the host failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The program and its purpose.
        command: String,
        /// What it wrote to standard error.
        output: String,
    },
    /// An image could not be mounted.
    #[error("mount of image {file} failed: {reason}")]
    Image {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The machine could not be started.
    #[error("machine {name} did not start: {reason}")]
    Boot {
        /// The machine.
        name: String,
        /// Why.
        reason: String,
    },
    /// All slots (ids and addresses) are taken.
    #[error("this host runs {most} machines already, its limit")]
    Full {
        /// The limit.
        most: u32,
    },
    /// Something of the machine is still there after the time limit.
    #[error("{what} of machine {name} did not go away in time")]
    Left {
        /// The machine.
        name: String,
        /// What is left.
        what: String,
    },
}
