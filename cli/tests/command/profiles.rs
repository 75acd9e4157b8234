use std::path::PathBuf;

use crate::run::{Server, command, run};

/// A configuration file of AWS, which a drop removes.
struct ConfigurationFile(PathBuf);

impl ConfigurationFile {
    fn write(name: &str, text: &str) -> Self {
        let file = format!("kinestream-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for ConfigurationFile {
    fn drop(&mut self) {
        let _may_be_gone = std::fs::remove_file(&self.0);
    }
}

const PROFILES: &str = "[default]\nregion = us-east-1\n[profile prod]\nregion = eu-west-1\n";

#[tokio::test(flavor = "multi_thread")]
async fn unknown_profile_is_reported_with_its_files_and_a_similar_one() {
    let file = ConfigurationFile::write("unknown-profile", PROFILES);
    let from_option =
        run(command("streams --profile prdo").env("AWS_CONFIG_FILE", file.path()), "").await;
    let expected = format!(
        "error: AWS profile prdo does not exist\n  The profiles are read from {} and \
         ~/.aws/credentials",
        file.path()
    );
    let failure = from_option.failure();
    assert!(failure.starts_with(&expected), "{failure}");
    assert!(failure.ends_with("\n  Did you mean prod?\n"), "{failure}");

    let mut named = command("tail orders");
    named.env("AWS_CONFIG_FILE", file.path()).env("AWS_PROFILE", "prdo");
    let from_variable = run(&mut named, "").await;
    let failure = from_variable.failure();
    assert!(failure.starts_with(&expected), "{failure}");
    assert!(failure.contains("\n  AWS_PROFILE names it; --profile names another one.\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn profile_that_exists_sets_the_region() {
    let server = Server::with_orders(1).await;
    let file = ConfigurationFile::write("known-profile", PROFILES);
    let mut named = server.command("describe order --profile prod");
    named.env("AWS_CONFIG_FILE", file.path());
    named.env("AWS_ACCESS_KEY_ID", "local").env("AWS_SECRET_ACCESS_KEY", "local");
    let described = run(&mut named, "").await;
    let failure = described.failure();
    assert!(failure.contains("  The region is eu-west-1; --region selects"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_endpoint_needs_no_profile_but_the_one_of_the_option() {
    let server = Server::with_orders(1).await;
    let listed = run(server.command("streams").env("AWS_PROFILE", "nope"), "").await;
    assert_eq!(listed.lines().len(), 2);
    let refused = server.run("streams --profile nope").await;
    assert!(
        refused.failure().starts_with("error: AWS profile nope does not exist\n"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_cannot_be_parsed_is_reported_with_its_line() {
    let file = ConfigurationFile::write("broken-profile", "[profile prod]\nregion\n");
    let read = run(command("streams").env("AWS_CONFIG_FILE", file.path()), "").await;
    let failure = read.failure();
    let expected = format!("error parsing {} on line 2: ", file.path());
    assert!(failure.starts_with("error: cannot read the AWS configuration files: "), "{failure}");
    assert!(failure.contains(&expected), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_endpoint_is_called_for_the_region_of_the_user() {
    let server = Server::with_orders(1).await;
    for (option, variable, expected) in [
        ("", None, "us-east-1"),
        ("", Some("eu-central-1"), "eu-central-1"),
        ("--region eu-west-1", Some("eu-central-1"), "eu-west-1"),
    ] {
        let mut described = server.command(&format!("describe order {option}"));
        described.envs(variable.map(|region| ("AWS_REGION", region)));
        let described = run(&mut described, "").await;
        let failure = described.failure();
        assert!(failure.contains(&format!("  The region is {expected}; --region")), "{failure}");
    }
}
