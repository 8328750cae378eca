//! What a command finds around it when the client does not say otherwise: environment, directory, shell.

use std::collections::BTreeMap;

/// The home directory.
pub(crate) const HOME: &str = "/home/sprite";

const SHELL: &str = "/bin/bash";

const PATH: &str = "/home/sprite/.local/bin:/.sprite/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const TERM: &str = "xterm-256color";

/// The environment of a command: the base, over it the sprite's own, over that the client's. A later value of a name wins.
pub(crate) fn of(
    sprite: Option<&BTreeMap<String, String>>,
    client: &[(String, String)],
    has_terminal: bool,
) -> Vec<(String, String)> {
    let base = [
        ("BROWSER", "/.sprite/bin/sprite-browser"),
        ("HOME", HOME),
        ("LANG", "C.UTF-8"),
        ("LOGNAME", "sprite"),
        ("PATH", PATH),
        ("SHELL", SHELL),
        ("USER", "sprite"),
    ];
    let mut all: BTreeMap<String, String> =
        base.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if has_terminal {
        all.insert("TERM".to_owned(), TERM.to_owned());
    }
    // A NUL cannot be in an environment; the client's entries were checked when they were parsed.
    let clean =
        |(name, value): &(&String, &String)| !name.contains(['=', '\0']) && !value.contains('\0');
    let sprite = sprite.into_iter().flatten().filter(clean);
    all.extend(sprite.map(|(name, value)| (name.clone(), value.clone())));
    all.extend(client.iter().cloned());
    all.into_iter().collect()
}

/// The argument vector; without one, the default shell, which is a login shell on a terminal.
pub(super) fn argv(cmd: Vec<String>, path: Option<&str>, has_terminal: bool) -> Vec<String> {
    if !cmd.is_empty() {
        return cmd;
    }
    match path {
        Some(path) => vec![path.to_owned()],
        None if has_terminal => vec!["bash".to_owned(), "-l".to_owned()],
        None => vec!["bash".to_owned()],
    }
}

/// The working directory; a relative one is relative to the home directory.
pub(crate) fn dir(dir: Option<&str>) -> String {
    match dir {
        None | Some("") => HOME.to_owned(),
        Some(dir) if dir.starts_with('/') => dir.to_owned(),
        Some("~") => HOME.to_owned(),
        Some(dir) => format!("{HOME}/{}", dir.strip_prefix("~/").unwrap_or(dir)),
    }
}

/// A command as people read it: the executable, then the arguments.
pub(super) fn display(path: &str, argv: &[String]) -> String {
    let arguments = argv.iter().skip(1).map(String::as_str);
    std::iter::once(path).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{argv, dir, display, of};
    use std::collections::BTreeMap;

    #[test]
    fn the_client_overrides_the_sprite_which_overrides_the_base() {
        let sprite = BTreeMap::from([
            ("A".to_owned(), "sprite".to_owned()),
            ("LANG".to_owned(), "de_DE.UTF-8".to_owned()),
            ("bad\0".to_owned(), "x".to_owned()),
        ]);
        let client = [("A".to_owned(), "client".to_owned())];
        let all: BTreeMap<_, _> = of(Some(&sprite), &client, true).into_iter().collect();
        assert_eq!(all["A"], "client");
        assert_eq!(all["LANG"], "de_DE.UTF-8");
        assert_eq!(all["TERM"], "xterm-256color");
        assert!(
            all["PATH"].contains("/.sprite/bin") && all["PATH"].contains("/home/sprite/.local/bin")
        );
        assert!(!all.contains_key("bad\0"));
        assert!(!of(None, &[], false).iter().any(|(name, _)| name == "TERM"));
    }

    #[test]
    fn no_command_is_the_shell() {
        assert_eq!(argv(vec![], None, true), ["bash", "-l"]);
        assert_eq!(argv(vec![], None, false), ["bash"]);
        assert_eq!(argv(vec![], Some("/bin/ls"), false), ["/bin/ls"]);
        assert_eq!(argv(vec!["ls".into(), "-l".into()], Some("/bin/ls"), false), ["ls", "-l"]);
    }

    #[test]
    fn directories_resolve_against_home() {
        for (given, dir_) in [
            (None, "/home/sprite"),
            (Some(""), "/home/sprite"),
            (Some("/tmp"), "/tmp"),
            (Some("src"), "/home/sprite/src"),
            (Some("~"), "/home/sprite"),
            (Some("~/src"), "/home/sprite/src"),
        ] {
            assert_eq!(dir(given), dir_, "{given:?}");
        }
    }

    #[test]
    fn a_command_is_shown_with_its_resolved_path() {
        assert_eq!(display("/usr/bin/echo", &["echo".into(), "hi".into()]), "/usr/bin/echo hi");
    }
}
