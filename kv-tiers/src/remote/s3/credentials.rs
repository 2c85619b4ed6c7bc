//! Who we are to the server.

use std::fmt;
use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Setting};

/// Credentials. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum S3Credentials {
    /// From where every client of S3 takes them: the first that is there of the variables `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN`); the shared credentials file with the profile `AWS_PROFILE`,
    /// read once; a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`); the container; the instance.
    Found,
    /// These.
    Given {
        /// Access key.
        key_id: String,
        /// Its secret.
        secret: String,
        /// Session token, for temporary credentials.
        token: Option<String>,
    },
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Found => "Found",
            Self::Given { .. } => "Given(..)",
        })
    }
}

/// The settings that say who we are, and no other: where to and how is the configuration's to say.
const SETTINGS: [(&str, Setting); 10] = [
    ("AWS_ACCESS_KEY_ID", Setting::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", Setting::SecretAccessKey),
    ("AWS_SESSION_TOKEN", Setting::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Setting::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", Setting::RoleArn),
    ("AWS_ROLE_SESSION_NAME", Setting::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", Setting::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Setting::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Setting::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Setting::ContainerAuthorizationTokenFile),
];

impl S3Credentials {
    /// Tells them to a client.
    pub(super) fn tell(self, builder: AmazonS3Builder) -> AmazonS3Builder {
        match self {
            Self::Given { key_id, secret, token } => {
                let builder = builder.with_access_key_id(key_id).with_secret_access_key(secret);
                token.into_iter().fold(builder, AmazonS3Builder::with_token)
            }
            Self::Found => find(builder, |name| std::env::var(name).ok().filter(|value| !value.is_empty())),
        }
    }
}

fn find(builder: AmazonS3Builder, variable: impl Fn(&str) -> Option<String>) -> AmazonS3Builder {
    let set = |builder: AmazonS3Builder, (name, setting)| match variable(name) {
        Some(value) => builder.with_config(setting, value),
        None => builder,
    };
    let builder = SETTINGS.into_iter().fold(builder, set);
    if builder.get_config_value(&Setting::AccessKeyId).is_some() {
        return builder;
    }
    let file = variable("AWS_SHARED_CREDENTIALS_FILE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws/credentials")));
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    of_profile(&text, &profile).fold(builder, |builder, (setting, value)| builder.with_config(setting, value))
}

/// What a credentials file says about a profile: sections `[profile]` of lines `name = value`.
/// <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>
fn of_profile<'a>(text: &'a str, profile: &'a str) -> impl Iterator<Item = (Setting, &'a str)> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim() == profile;
        }
        let (name, value) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';']))?;
        let setting = match name.trim() {
            "aws_access_key_id" => Setting::AccessKeyId,
            "aws_secret_access_key" => Setting::SecretAccessKey,
            "aws_session_token" => Setting::Token,
            _ => return None,
        };
        Some((setting, value.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = one\naws_secret_access_key=s=1\nregion = x\n\n\
        [ other ]\n#aws_access_key_id = no\n  aws_access_key_id = two\naws_secret_access_key = s2\n\
        aws_session_token = t2\n";

    fn found(variables: &[(&str, &str)]) -> [Option<String>; 4] {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let builder = find(AmazonS3Builder::new(), value);
        [Setting::AccessKeyId, Setting::SecretAccessKey, Setting::Token, Setting::WebIdentityTokenFile]
            .map(|setting| builder.get_config_value(&setting))
    }

    #[test]
    fn variables_come_before_the_file_and_the_file_has_profiles() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), FILE).unwrap();
        let path = ("AWS_SHARED_CREDENTIALS_FILE", file.path().to_str().unwrap());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found(&[path]), [some("one"), some("s=1"), None, None]);
        assert_eq!(found(&[path, ("AWS_PROFILE", "other")]), [some("two"), some("s2"), some("t2"), None]);
        assert_eq!(found(&[path, ("AWS_PROFILE", "none")]), [None, None, None, None]);
        let variables = [path, ("AWS_ACCESS_KEY_ID", "three"), ("AWS_SECRET_ACCESS_KEY", "s3")];
        assert_eq!(found(&variables), [some("three"), some("s3"), None, None]);
        let variables = [("AWS_WEB_IDENTITY_TOKEN_FILE", "f"), ("AWS_ROLE_ARN", "r")];
        assert_eq!(found(&variables), [None, None, None, some("f")]);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let text = || "hidden".to_owned();
        let credentials = S3Credentials::Given { key_id: text(), secret: text(), token: Some(text()) };
        assert_eq!(format!("{credentials:?}"), "Given(..)");
    }
}
