//! What `dwcp` says of itself, every command of it, held by a golden file.
#![allow(clippy::unwrap_used)]

mod rig;

use rig::{golden, rig};

/// The names of the commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn every_help_text_is_the_golden_file() {
    let rig = rig().await;
    let mut text = String::new();
    let mut left = vec![Vec::<String>::new()];
    while let Some(path) = left.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let help = rig.run(&args).await.good();
        for name in commands(&help).into_iter().rev() {
            left.push(path.iter().cloned().chain([name]).collect());
        }
        text += &format!("$ dwcp {}\n{help}\n", args.join(" "));
    }
    golden("help.txt", &text);
}

#[tokio::test]
async fn what_is_not_understood_ends_with_2() {
    let rig = rig().await;
    for (line, said) in [
        ("", "Usage"),
        ("nonsense", "unrecognized"),
        ("vm create web", "--kernel"),
        ("vm create web --kernel k", "--memory"),
        (
            "vm create web --template t --memory 1GB",
            "write it like 512MiB",
        ),
        ("vm create web --template t --vcpus 33", "1..=32"),
        ("vm create web --template t --tag owner", "KEY=VALUE"),
        (
            "vm create web --kernel k --memory 1GiB --param a=b",
            "--template",
        ),
        ("vm migrate web", "--to"),
        ("host add right --address x --fingerprint abc", "SHA-256"),
        ("policy bind tags --to vm.create --mode loud", "enforce"),
        ("plugin install a/b --yes --grant x", "cannot be used with"),
        ("vm list -o yaml", "table"),
    ] {
        let args: Vec<&str> = line.split(' ').filter(|arg| !arg.is_empty()).collect();
        let err = rig.run(&args).await.bad(2);
        assert!(err.contains(said), "{line}: {err}");
    }
}

#[tokio::test]
async fn completions_and_version_need_no_host() {
    let rig = rig().await;
    std::fs::remove_dir_all(rig.home.path().join(".config")).unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let text = rig.run(&["completion", shell]).await.good();
        assert!(text.contains("migrate"), "{shell}");
    }
    let version = rig.run(&["version"]).await.good();
    assert_eq!(version, format!("dwcp {}\n", env!("CARGO_PKG_VERSION")));
    let err = rig.run(&["vm", "list"]).await.bad(1);
    assert!(
        err.starts_with("error: There is no profile yet: start dwcpd"),
        "{err}"
    );
}
