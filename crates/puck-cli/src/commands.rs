//! The commands, one file each, named as they are typed.

/// What the client can do. The server's own commands stand beside these in the binary.
#[derive(Debug, clap::Subcommand)]
pub enum Commands {
    /// List sprites
    #[command(visible_alias = "ls")]
    List,
}
