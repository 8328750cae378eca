//! Options that every command understands, wherever on the line they stand.

/// The options that come before or after the name of a command.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// The organization; it must be the one that the token belongs to [env: SPRITE_ORG]
    #[arg(short, long, global = true, value_name = "ORG", help_heading = "Global options")]
    pub org: Option<String>,

    /// The sprite to act on; without it the one named in the nearest `.sprite` file
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub sprite: Option<String>,

    /// Print each request and its answer's status on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    pub debug: bool,
}
