//! What the command line accepts, and what it makes of it.

use super::Commands;
use crate::Options;
use clap::{CommandFactory, Parser};

#[derive(Debug, Parser)]
#[command(name = "puck")]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Commands,
}

fn parse(line: &str) -> Result<Line, clap::Error> {
    Line::try_parse_from(std::iter::once("puck").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_sound() {
    Line::command().debug_assert();
}

#[test]
fn every_spelling_is_accepted() {
    for line in [
        "create",
        "create web --skip-console --label a --label b",
        "use web",
        "use --unset",
        "list -w --prefix ci- --json",
        "ls",
        "info",
        "url",
        "url update -a public",
        "url update --auth sprite -s web",
        "config update --url-auth public",
        "config update --idle-timeout 10m",
        "destroy web --force",
        "exec -- ls -la",
        "x --dir /tmp --tty --env A=1,B=2 --env C=3 --file a:b --file c:d ls -la",
        "exec --http-post ls",
        "console",
        "c -s web",
        "sessions list --json",
        "s ls",
        "s attach 12",
        "sessions kill 12 --signal int --timeout 0s",
        "attach",
        "attach 12",
        "checkpoint create --comment words",
        "checkpoints ls --history v1 --include-auto",
        "checkpoint info v1",
        "checkpoint rm v1",
        "checkpoint delete v1",
        "checkpoint restore v1",
        "restore v1",
        "restore --at 10m",
        "restore --at 2026-01-31T10:00:00Z",
        "checkpoint diff v1 v2 --json",
        "fork web web-2",
        "fork web@v1 web-2",
        "undelete web --as web-2",
        "list --destroyed",
        "volume stats --json",
        "config update --durability strict",
        "-o acme -s web --debug list",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
}

#[test]
fn anything_else_is_a_usage_error() {
    for line in [
        "",
        "dance",
        "use web --unset",
        "url update --auth everybody",
        "config update",
        "config update --idle-timeout soon",
        "exec",
        "exec --tty --http-post ls",
        "exec --env A ls",
        "exec --file a ls",
        "attach ../x",
        "restore ..",
        "restore",
        "checkpoint info a/b",
        "sessions kill 12 --signal ../",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn flags_after_the_command_belong_to_the_command() {
    for (line, command) in [
        ("exec ls -s x --debug", &["ls", "-s", "x", "--debug"][..]),
        ("exec -s web -- -x -- y", &["-x", "--", "y"]),
        ("-s web exec ls -- -l", &["ls", "--", "-l"]),
    ] {
        let Line { options, command: Commands::Exec(exec) } = parse(line).expect(line) else {
            unreachable!()
        };
        assert!(format!("{exec:?}").ends_with(&format!("command: {command:?} }}")), "{exec:?}");
        assert!(!options.debug);
    }
}
