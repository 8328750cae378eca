//! Where a command acts: which server, as whom, on which sprite.
//!
//! The process's environment is read once, into [`Environment`]; everything here is decided from that and the options. The
//! sprite is the one of `-s`, else the one of the nearest `.sprite` file. The organization is a check, not a choice: the
//! token already says which one it opens, and acting on a sprite of the same name elsewhere would be a nasty surprise.

use crate::{
    Options,
    client::Client,
    endpoint::{Endpoint, EndpointError},
    project::{self, Project, ProjectError},
};
use api::{
    name::{NameError, SpriteName},
    token::Token,
};
use std::{env, path::PathBuf};

/// Where `puck dev` listens unless told otherwise.
const API_URL_DEFAULT: &str = "http://127.0.0.1:8080";

/// What the process was started with.
#[derive(Default)]
pub(crate) struct Environment {
    /// `SPRITES_API_URL`.
    pub(crate) api_url: Option<String>,
    /// `SPRITE_TOKEN`.
    pub(crate) token: Option<String>,
    /// `SPRITE_ORG`.
    pub(crate) org: Option<String>,
    /// The working directory, from which `.sprite` is searched upward.
    pub(crate) directory: PathBuf,
}

impl Environment {
    /// Reads the environment. A variable that is set to nothing counts as not set.
    pub(crate) fn of_process() -> Self {
        let variable = |name| {
            env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        Self {
            api_url: variable("SPRITES_API_URL"),
            token: variable("SPRITE_TOKEN"),
            org: variable("SPRITE_ORG"),
            // Where the working directory has been removed there is no `.sprite` either.
            directory: env::current_dir().unwrap_or_default(),
        }
    }
}

/// Why it is not clear where to act.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    /// The server's address is not one.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A name that no sprite can have.
    #[error("{name:?} cannot be a sprite's name: use lower-case letters, digits and inner hyphens")]
    Name { name: String, source: NameError },
    /// Nothing says which sprite.
    #[error("no sprite chosen: pass -s NAME, or run `puck use NAME` in this directory")]
    NoSprite,
    /// Nothing says as whom.
    #[error("no API token: set SPRITE_TOKEN to the line that `puck dev` prints when it starts")]
    NoToken,
    /// The token opens another organization than the one asked for.
    #[error("SPRITE_TOKEN belongs to organization {of_token}, but {asked_by} asks for {asked}")]
    Organization { of_token: String, asked: String, asked_by: String },
    /// The project file is there but of no use.
    #[error(transparent)]
    Project(#[from] ProjectError),
}

/// Where a command acts.
pub(crate) struct Context {
    options: Options,
    environment: Environment,
}

impl Context {
    pub(crate) fn new(options: Options, environment: Environment) -> Self {
        Self { options, environment }
    }

    /// The working directory.
    pub(crate) fn directory(&self) -> &std::path::Path {
        &self.environment.directory
    }

    /// A client of the server. Opens no connection yet.
    pub(crate) fn client(&self) -> Result<Client, ContextError> {
        let token = self.environment.token.as_deref().ok_or(ContextError::NoToken)?;
        if let Some(org) = &self.options.org {
            self.check_org(org, "-o")?;
        } else if let Some(org) = &self.environment.org {
            self.check_org(org, "SPRITE_ORG")?;
        }
        let url = self.environment.api_url.as_deref().unwrap_or(API_URL_DEFAULT);
        Ok(Client::new(Endpoint::new(url, token, self.options.debug)?))
    }

    /// The organization that the token opens; a token of another server may not tell.
    pub(crate) fn organization(&self) -> Option<String> {
        let token: Option<Token> =
            self.environment.token.as_deref().and_then(|token| token.parse().ok());
        token.map(|token| token.org.to_string())
    }

    /// The sprite that is named, or else the chosen one.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<SpriteName, ContextError> {
        name.map_or_else(|| self.sprite(), parse)
    }

    /// The chosen sprite: of `-s`, or of the nearest `.sprite` file.
    pub(crate) fn sprite(&self) -> Result<SpriteName, ContextError> {
        if let Some(name) = &self.options.sprite {
            return parse(name);
        }
        let Some((path, Project { organization, sprite: Some(name) })) =
            project::find(self.directory())?
        else {
            return Err(ContextError::NoSprite);
        };
        if let Some(organization) = organization {
            self.check_org(&organization, &path.display().to_string())?;
        }
        parse(&name)
    }

    fn check_org(&self, asked: &str, asked_by: &str) -> Result<(), ContextError> {
        match self.organization() {
            Some(of_token) if of_token != asked => Err(ContextError::Organization {
                of_token,
                asked: asked.into(),
                asked_by: asked_by.into(),
            }),
            _ => Ok(()),
        }
    }
}

fn parse(name: &str) -> Result<SpriteName, ContextError> {
    name.parse().map_err(|source| ContextError::Name { name: name.into(), source })
}

#[cfg(test)]
mod tests {
    use super::{Context, Environment};
    use crate::{
        Options,
        project::{self, Project},
    };
    use std::path::Path;

    fn context(directory: &Path, options: Options) -> Context {
        let environment = Environment {
            token: Some("acme/1a2b/t1/s3cret".into()),
            directory: directory.into(),
            ..Environment::default()
        };
        Context::new(options, environment)
    }

    fn choose(directory: &Path, organization: &str) {
        let project =
            Project { organization: Some(organization.into()), sprite: Some("chosen".into()) };
        project::write(directory, &project).expect("writable");
    }

    #[test]
    fn a_named_sprite_comes_before_the_option_and_that_before_the_file() {
        let root = tempfile::tempdir().expect("temporary directory");
        choose(root.path(), "acme");
        let by_file = context(root.path(), Options::default());
        assert_eq!(by_file.sprite().expect("chosen").as_str(), "chosen");
        assert_eq!(by_file.named(Some("named")).expect("named").as_str(), "named");
        let by_option =
            context(root.path(), Options { sprite: Some("web".into()), ..Options::default() });
        assert_eq!(by_option.sprite().expect("chosen").as_str(), "web");
        assert_eq!(by_option.named(None).expect("chosen").as_str(), "web");
    }

    #[test]
    fn what_is_missing_is_said() {
        let root = tempfile::tempdir().expect("temporary directory");
        let error = context(root.path(), Options::default()).sprite().expect_err("nothing chosen");
        assert_eq!(
            error.to_string(),
            "no sprite chosen: pass -s NAME, or run `puck use NAME` in this directory"
        );
        let bare = Environment { directory: root.path().into(), ..Environment::default() };
        let error = Context::new(Options::default(), bare).client().err().expect("no token");
        assert!(error.to_string().contains("set SPRITE_TOKEN"), "{error}");
    }

    #[test]
    fn another_organization_is_refused_and_the_secret_kept() {
        let root = tempfile::tempdir().expect("temporary directory");
        choose(root.path(), "globex");
        let errors = [
            context(root.path(), Options::default())
                .sprite()
                .expect_err("other organization")
                .to_string(),
            context(root.path(), Options { org: Some("globex".into()), ..Options::default() })
                .client()
                .err()
                .expect("other organization")
                .to_string(),
        ];
        for error in errors {
            assert!(
                error.contains("belongs to organization acme") && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bad_name_is_refused_before_the_server_is_asked() {
        let root = tempfile::tempdir().expect("temporary directory");
        for bad in ["../x", "Web", "a b", ""] {
            let options = Options { sprite: Some(bad.into()), ..Options::default() };
            assert!(context(root.path(), options).sprite().is_err(), "{bad:?}");
        }
    }
}
