//! A working day with `dwcp`: what it prints for people, held by a golden file, and for programs.
#![allow(clippy::unwrap_used)]

mod rig;

use rig::{Rig, golden, rig, settled};

async fn told(rig: &Rig, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let ran = rig.line(line).await;
        text += &format!("$ dwcp {line}\n{}{}", ran.err, ran.out);
        if ran.code != 0 {
            text += &format!("[exit {}]\n", ran.code);
        }
        text.push('\n');
    }
    settled(&text, rig)
}

#[tokio::test]
async fn what_people_see_is_the_golden_file() {
    let rig = rig().await;
    let policy = rig.file(
        "tags.rego",
        "package dwcp.admission\n\ndeny contains \"no owner\" if not input.tags.owner\n",
    );
    let broken = rig.file("broken.rego", "nonsense");
    let kernel = rig.file("vmlinux", "kernel");
    let fingerprint = "3b".repeat(32);
    let home = rig.home.path().display().to_string();
    let lines = [
        "host list".to_owned(),
        "host show".into(),
        "host cpu".into(),
        format!("host add right --address 192.0.2.2:4600 --fingerprint sha256:{fingerprint}"),
        format!("host add right --address 192.0.2.2:4600 --fingerprint {fingerprint}"),
        format!("host add far --address 192.0.2.99:4600 --fingerprint {fingerprint}"),
        "host show far".into(),
        "host remove far".into(),
        "host list".into(),
        "plugin search".into(),
        "plugin search worker".into(),
        "plugin install dwcp/placement-default".into(),
        "plugin install dwcp/placement-default --yes".into(),
        "plugin install dwcp/placement-default --grant network".into(),
        "plugin install mallory/evil --yes".into(),
        "plugin install dwcp/worker@1.0.0 --yes".into(),
        "plugin list".into(),
        "plugin show dwcp/placement-default".into(),
        "template list".into(),
        "template show dwcp/worker".into(),
        format!("policy apply tags {}", broken.display()),
        format!("policy apply tags {}", policy.display()),
        "policy bind tags --to vm.create".into(),
        "policy list".into(),
        "policy show tags".into(),
        "policy remove tags".into(),
        "vm create web --template dwcp/worker".into(),
        "vm create web --template dwcp/worker --tag owner=me --tag project=shop --tag environment=test --tag cost_center=7"
            .into(),
        "policy unbind tags --from vm.create".into(),
        "policy bind tags --to vm.create --mode warn".into(),
        "vm create warned --template dwcp/worker --tag owner=me".into(),
        "vm delete warned --force".into(),
        "policy unbind tags --from vm.create".into(),
        format!("image add {} --label test-kernel", kernel.display()),
        "image list".into(),
        format!("vm create own --kernel {} --memory 1GiB --vcpus 2 --cpu x86-64-v2 --cmdline console=ttyS0 --no-start", kernel.display()),
        "vm list".into(),
        "vm show own".into(),
        "vm why web".into(),
        "vm log web".into(),
        "vm start own".into(),
        "vm stats web".into(),
        "vm pause web".into(),
        "vm resume web".into(),
        "vm reset web".into(),
        "vm memory web 256MiB".into(),
        "vm resize-disk web none 1GiB".into(),
        "vm connect web 7".into(),
        "vm stop own".into(),
        "snapshot create before --of web".into(),
        "snapshot create before --of web".into(),
        "snapshot create after --of web --incremental --compress".into(),
        "snapshot show after".into(),
        "snapshot list".into(),
        "snapshot show before".into(),
        "vm restore web before".into(),
        "vm restore own before".into(),
        "vm stop own".into(),
        "snapshot delete before".into(),
        "snapshot list --of web".into(),
        "vm migrate web --to nowhere".into(),
        "vm migrate web --to right".into(),
        "migration list".into(),
        "vm delete web".into(),
        "vm stop web --force".into(),
        "vm delete web".into(),
        "vm show web".into(),
        "vm create doubt --template dwcp/worker".into(),
        "vm migrate doubt --to right".into(),
        "vm create base --template dwcp/worker".into(),
        "vm fork base".into(),
        "vm fork base --seal --count 2".into(),
        "vm fork base named".into(),
        "vm show base-2".into(),
        "vm list".into(),
        "decision list --vm web".into(),
        "event list --limit 5".into(),
        "audit list --limit 3".into(),
        "plugin remove dwcp/worker".into(),
        "host remove right".into(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let text = told(&rig, &lines).await;
    assert!(!text.contains(&home));
    golden("session.txt", &text);
}

#[tokio::test]
async fn what_programs_see_is_json() {
    let rig = rig().await;
    let fingerprint = "3b".repeat(32);
    rig.line(&format!(
        "host add right --address 192.0.2.2:4600 --fingerprint {fingerprint}"
    ))
    .await
    .good();
    let vm = rig
        .line("vm create web --template dwcp/worker -o json")
        .await
        .json();
    assert_eq!(
        (vm["name"].as_str(), vm["phase"].as_str()),
        (Some("web"), Some("running"))
    );
    let list = rig.line("-o json vm list").await.json();
    assert_eq!(list[0]["id"], vm["id"]);
    assert_eq!(rig.line("vm why web -o json").await.json()["host"], "left");
    let migration = rig.line("vm migrate web --to right -o json").await.json();
    assert_eq!(migration["phase"], "done");
    let id = migration["id"].as_str().unwrap();
    let shown = rig
        .line(&format!("migration show {id} -o json"))
        .await
        .json();
    assert_eq!(shown, migration);
    let people = rig.line(&format!("migration show {id}")).await.good();
    assert!(
        people.contains("61.5 ms") && people.contains("ROUND"),
        "{people}"
    );
    let decisions = rig.line("decision list --vm web -o json").await.json();
    let id = decisions[0]["id"].as_str().unwrap();
    assert_eq!(
        rig.line(&format!("decision show {id} -o json"))
            .await
            .json(),
        decisions[0]
    );
    rig.line(&format!("decision show {id}")).await.good();
    assert_eq!(
        rig.line("vm list --project other -o json").await.json(),
        serde_json::json!([])
    );
    assert_eq!(rig.line("vm delete web --force -o json").await.good(), "");
}

#[tokio::test]
async fn a_doubt_is_ended_by_naming_the_fenced_host() {
    let rig = rig().await;
    let fingerprint = "3b".repeat(32);
    rig.line(&format!(
        "host add right --address 192.0.2.2:4600 --fingerprint {fingerprint}"
    ))
    .await
    .good();
    rig.line("vm create doubt --template dwcp/worker")
        .await
        .good();
    let err = rig.line("vm migrate doubt --to right").await.bad(1);
    assert!(err.contains("The link was cut behind the commit"), "{err}");
    assert!(err.contains("round 3:"), "each round has its line: {err}");
    let list = rig.line("migration list -o json").await.json();
    let id = list[0]["id"].as_str().unwrap();
    rig.line(&format!("migration resolve {id}")).await.bad(2);
    let out = rig
        .line(&format!("migration resolve {id} --fenced right"))
        .await
        .good();
    assert_eq!(out, "The migration is failed: right is fenced\n");
}

#[tokio::test]
async fn the_environment_comes_before_the_file() {
    let rig = rig().await;
    let ca = rig.file("ca.pem", &rig.served.ca_pem);
    std::fs::remove_dir_all(rig.home.path().join(".config")).unwrap();
    let mut command = rig.command(&["host", "list"]);
    command
        .env("DWCP_ADDRESS", rig.served.url())
        .env("DWCP_CA_FILE", &ca)
        .env("DWCP_KEY", "dwcp_test");
    rig::ran(command).await.good();
    let mut command = rig.command(&["host", "list"]);
    command
        .env("DWCP_ADDRESS", rig.served.url())
        .env("DWCP_CA_FILE", &ca)
        .env("DWCP_KEY", "wrong");
    let err = rig::ran(command).await.bad(1);
    assert!(
        err.starts_with("error: The API key belongs to nobody"),
        "{err}"
    );
    let mut command = rig.command(&["host", "list", "--profile", "none"]);
    command.env("XDG_CONFIG_HOME", rig.home.path().join("elsewhere"));
    assert!(
        rig::ran(command)
            .await
            .bad(1)
            .contains("elsewhere/dwcp/config.toml")
    );
}
