//! The client as a process, against a server in this one: what is printed where, and how it exits.

mod server;
mod terminal;

use server::{TOKEN, address};
use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The client, without anything of this process's environment that it could read.
fn client(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).env_clear();
    command.env("SPRITES_API_URL", format!("http://{}", address())).env("SPRITE_TOKEN", TOKEN);
    command
}

/// The example beside this test's own program.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let profile = test.ancestors().nth(2).expect("PROFILE/deps/TEST");
    profile.join("examples/client")
}

fn run(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("temporary directory");
    client(directory.path(), arguments).output().expect("the client starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Runs the client and compares its exit code, standard output and standard error.
fn check(arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let output = run(arguments);
    let got = (output.status.code(), text(&output.stdout), text(&output.stderr));
    assert_eq!(got, (Some(code), stdout, stderr), "{arguments:?}");
}

#[test]
fn a_pipe_gets_names_and_nothing_else() {
    check(&["list"], 0, "db\nweb\n", "");
    check(&["ls", "--prefix", "w"], 0, "web\n", "");
    check(&["url", "-s", "web"], 0, "http://web-1a2b.localhost\n", "");
    check(&["create", "fresh"], 0, "fresh\n", "");
    check(&["sessions", "list", "-s", "web"], 0, "7\n", "");
    check(&["checkpoint", "ls", "-s", "web"], 0, "v2\nv1\n", "");
}

#[test]
fn json_is_what_the_api_says() {
    for (arguments, expected) in [
        (&["list", "--json"][..], serde_json::json!([server::sprite("db"), server::sprite("web")])),
        (&["info", "web", "--json"], server::sprite("web")),
        (&["sessions", "list", "-s", "web", "--json"], server::sessions()["sessions"].clone()),
        (&["checkpoint", "list", "-s", "web", "--json"], server::checkpoints()),
    ] {
        let output = run(arguments);
        let got: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(got, expected, "{arguments:?}");
    }
}

#[test]
fn a_name_is_picked_where_none_is_given() {
    let output = run(&["create"]);
    let name = text(&output.stdout).trim_end();
    assert_eq!(name.split('-').count(), 3, "{name:?}");
}

#[test]
fn what_the_server_refuses_is_one_line_that_says_what_to_do() {
    check(
        &["info", "lost"],
        1,
        "",
        "error: show lost: sprite not found (`puck list` shows which there are)\n",
    );
    check(
        &["exec", "-s", "lost", "ls"],
        1,
        "",
        "error: run ls in lost: sprite not found (`puck list` shows which there are)\n",
    );
    let taken = "error: create taken: A sprite named 'taken' already exists. Please choose a different name.\n";
    check(&["create", "taken"], 1, "", taken);
    let missing = "error: restore v9 in web: checkpoint v9 not found\n";
    check(&["restore", "v9", "-s", "web"], 1, "Restoring from checkpoint v9...\n", missing);
}

#[test]
fn a_wrong_token_is_named_but_not_shown() {
    for arguments in [&["list"][..], &["exec", "-s", "web", "ls"], &["--debug", "list"]] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let output = client(directory.path(), arguments)
            .env("SPRITE_TOKEN", "acme/1a2b/t1/wr0ng")
            .output()
            .expect("it starts");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("authentication failed (SPRITE_TOKEN is not a token of this server)"),
            "{stderr}"
        );
        assert!(!stderr.contains("wr0ng"), "{stderr}");
    }
}

#[test]
fn what_is_missing_is_said_before_the_server_is_asked() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let output =
        client(directory.path(), &["list"]).env_remove("SPRITE_TOKEN").output().expect("it starts");
    assert_eq!(
        text(&output.stderr),
        "error: no API token: set SPRITE_TOKEN to the line that `puck dev` prints when it starts\n"
    );
    check(
        &["exec", "ls"],
        1,
        "",
        "error: no sprite chosen: pass -s NAME, or run `puck use NAME` in this directory\n",
    );
    let output = client(directory.path(), &["list"])
        .env("SPRITES_API_URL", "http://127.0.0.1:1")
        .output()
        .expect("it starts");
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with(
            "error: list sprites: cannot reach http://127.0.0.1:1: Connection refused"
        ),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let other = "error: SPRITE_TOKEN belongs to organization acme, but -o asks for globex\n";
    check(&["list", "-o", "globex"], 1, "", other);
}

#[test]
fn usage_errors_exit_with_two() {
    assert_eq!(run(&["dance"]).status.code(), Some(2));
    check(
        &["console", "-s", "web"],
        2,
        "",
        "error: a console needs a terminal: use `puck exec` to run a command without one\n",
    );
    let unasked = "error: destroying web cannot be confirmed without a terminal: pass --force\n";
    check(&["destroy", "web"], 2, "", unasked);
    check(&["destroy", "web", "--force"], 0, "", "Destroyed web\n");
}

#[test]
fn a_directory_remembers_its_sprite() {
    let root = tempfile::tempdir().expect("temporary directory");
    let deep = root.path().join("a/b");
    std::fs::create_dir_all(&deep).expect("directories");
    let status = |directory: &Path, arguments: &[&str]| {
        client(directory, arguments).output().expect("it starts").status
    };
    assert!(status(root.path(), &["use", "web"]).success());
    let kept = std::fs::read_to_string(root.path().join(".sprite")).expect("written");
    let kept: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(kept, serde_json::json!({"organization": "acme", "sprite": "web"}));
    assert_eq!(status(&deep, &["exec", "exit", "4"]).code(), Some(4));
    assert_eq!(status(&deep, &["exec", "-s", "lost", "exit", "4"]).code(), Some(1));
    std::fs::create_dir(deep.join(".sprite")).expect("a directory in the way");
    assert_eq!(status(&deep, &["exec", "exit", "4"]).code(), Some(4));
    let output = client(&deep, &["use", "web"]).output().expect("it starts");
    assert!(text(&output.stderr).contains("is a directory"), "{}", text(&output.stderr));
    assert!(!status(root.path(), &["use", "lost"]).success());
    assert!(status(root.path(), &["use", "--unset"]).success());
    assert_eq!(status(&deep, &["exec", "exit", "4"]).code(), Some(1));
}

#[test]
fn exit_codes_and_streams_are_passed_through() {
    for sprite in ["web", "plain"] {
        for code in [0, 1, 2, 126, 127, 130, 255] {
            check(&["exec", "-s", sprite, "--", "exit", &code.to_string()], code, "", "");
        }
        check(&["exec", "-s", sprite, "say", "out", "err"], 0, "out", "err");
    }
    check(&["exec", "-s", "web", "--http-post", "say", "out", "err"], 0, "out", "err");
    check(&["exec", "-s", "web", "echo a && echo b"], 0, "bash -c echo a && echo b", "");
}

#[test]
fn standard_input_is_piped() {
    for flags in [&["-s", "web"][..], &["-s", "plain"], &["-s", "web", "--http-post"]] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let arguments = [&["exec"], flags, &["cat"]].concat();
        let mut child = client(directory.path(), &arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client starts");
        let input = "0123456789".repeat(30_000);
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the client reads");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(0), input.len()),
            "{flags:?}"
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut child = client(directory.path(), &["exec", "-s", "web", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut first)
        .expect("it prints");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), ""));
}

#[test]
fn an_interrupted_client_ends_by_the_signal() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut child = client(directory.path(), &["exec", "-s", "web", "wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut first)
        .expect("it prints");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our child");
    let output = child.wait_with_output().expect("it ends");
    let told = r#"{"type":"signal","signal":"INT"}"#;
    assert_eq!((output.status.signal(), text(&output.stdout)), (Some(2), told));
}

#[test]
fn files_go_ahead_of_the_command() {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("in.txt"), "content").expect("writable");
    let run = |file: &str| {
        client(directory.path(), &["exec", "-s", "web", "--file", file, "uploads"]).output()
    };
    let output = run("in.txt:dir/out.txt").expect("it starts");
    assert_eq!(
        text(&output.stdout),
        "/home/sprite dir/out.txt 0644 content",
        "{}",
        text(&output.stderr)
    );
    let output = run("absent:x").expect("it starts");
    assert!(
        text(&output.stderr).starts_with("error: copy absent to web: open: No such file"),
        "{}",
        text(&output.stderr)
    );
    let output = run(".:x").expect("it starts");
    assert!(text(&output.stderr).contains("it is a directory"), "{}", text(&output.stderr));
}

#[test]
fn a_checkpoint_is_shown_as_it_is_made() {
    let expected = "Creating checkpoint...\n  ID: v3\nCheckpoint v3 created successfully\nCheckpoint created: v3\n";
    check(&["checkpoint", "create", "-s", "web", "--comment", "words"], 0, expected, "");
    check(
        &["restore", "v1", "-s", "web"],
        0,
        "Restoring from checkpoint v1...\nRestore from v1 complete\n",
        "",
    );
    check(&["checkpoint", "rm", "v1", "-s", "web"], 0, "", "Deleted checkpoint v1\n");
    let kill = "Signaling TERM\nSession 7 ended with exit code 143\n";
    check(&["sessions", "kill", "7", "-s", "web"], 0, kill, "");
}
