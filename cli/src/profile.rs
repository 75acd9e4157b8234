//! The profile of the AWS configuration files. The SDK ignores a profile that does not exist.

use std::path::{Path, PathBuf};

use aws_config::profile;
use aws_runtime::env_config::file::EnvConfigFiles;
use aws_runtime::fs_util::{Os, home_dir};
use aws_types::os_shim_internal::{Env, Fs};

use crate::failure::{Failure, Outcome, causes};
use crate::nearest::nearest;

/// The variables that name the two files, and the files that are read without them.
const FILES: [(&str, &str); 2] =
    [("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")];

/// Checks that the profile of `--profile`, or that of `AWS_PROFILE`, exists.
///
/// # Errors
///
/// The failure names the files, and profiles with similar names. A file that cannot be parsed is a
/// failure as well, since the SDK would read nothing from it.
pub(crate) async fn check(option: Option<&str>) -> Outcome<()> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = variable("AWS_PROFILE");
    let files = EnvConfigFiles::default();
    let loaded = profile::load(&Fs::real(), &Env::real(), &files, None).await;
    let profiles = loaded.map_err(|error| {
        // The text of the parser has several lines.
        let causes = causes(&error).split_whitespace().collect::<Vec<_>>().join(" ");
        Failure::new(format!("cannot read the AWS configuration files: {causes}"))
    })?;
    let Some(name) = option.or(named.as_deref()) else { return Ok(()) };
    // The default profile needs no file, as with the AWS command line.
    if name == "default" || profiles.get_profile(name).is_some() {
        return Ok(());
    }
    let home = home_dir(&Env::real(), Os::real()).map(PathBuf::from);
    let files = FILES.map(|(name, default)| {
        let path = variable(name).unwrap_or_else(|| default.to_owned());
        let exists = expanded(&path, home.as_deref()).exists();
        (path, exists)
    });
    let known: Vec<&str> = profiles.profiles().collect();
    Err(unknown(name, option.is_none(), &files, &known))
}

/// Returns the path with the home directory in place of `~`.
fn expanded(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn unknown(
    name: &str,
    is_from_variable: bool,
    files: &[(String, bool)],
    known: &[&str],
) -> Failure {
    let files = files.iter().map(|(path, exists)| {
        if *exists { path.clone() } else { format!("{path} (which does not exist)") }
    });
    let files = files.collect::<Vec<_>>().join(" and ");
    let mut failure = Failure::new(format!("AWS profile {name} does not exist"))
        .advise(format!("The profiles are read from {files}."));
    if is_from_variable {
        failure = failure.advise("AWS_PROFILE names it; --profile names another one.");
    }
    match &nearest(name, known)[..] {
        [] if known.is_empty() => failure.advise("There are no profiles."),
        [] => {
            let mut known = known.to_vec();
            known.sort_unstable();
            failure.advise(format!("The profiles are {}.", known.join(", ")))
        }
        near => failure.advise(format!("Did you mean {}?", near.join(" or "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Paint;

    fn shown(name: &str, is_from_variable: bool, known: &[&str]) -> String {
        let files = [("~/.aws/config".to_owned(), true), ("~/.aws/credentials".to_owned(), false)];
        unknown(name, is_from_variable, &files, known).shown(Paint::plain())
    }

    #[test]
    fn unknown_profile_names_the_files_and_a_similar_one() {
        assert_eq!(
            shown("prdo", false, &["default", "prod", "dev"]),
            "error: AWS profile prdo does not exist\n  The profiles are read from ~/.aws/config and \
             ~/.aws/credentials (which does not exist).\n  Did you mean prod?"
        );
    }

    #[test]
    fn unknown_profile_of_the_variable_names_it_and_all_profiles() {
        let text = shown("nope", true, &["prod", "default"]);
        assert!(
            text.contains("\n  AWS_PROFILE names it; --profile names another one.\n"),
            "{text}"
        );
        assert!(text.ends_with("\n  The profiles are default, prod."), "{text}");
        assert!(shown("nope", false, &[]).ends_with("\n  There are no profiles."));
    }

    #[test]
    fn home_directory_replaces_a_tilde() {
        let home = Some(Path::new("/home/jane"));
        assert_eq!(expanded("~/.aws/config", home), Path::new("/home/jane/.aws/config"));
        assert_eq!(expanded("/etc/aws", home), Path::new("/etc/aws"));
        assert_eq!(expanded("~/x", None), Path::new("~/x"));
    }
}
