//! The client against a host in memory, over real TLS.
#![allow(clippy::unwrap_used)]

#[path = "../../../host/api/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Served, TEST_KEY, digest_of, served};
use dwcp_sdk::types::*;
use dwcp_sdk::{Client, Error, Profile};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn profile(served: &Served) -> Profile {
    Profile {
        address: served.url(),
        ca_pem: served.ca_pem.clone(),
        api_key: TEST_KEY.into(),
    }
}

async fn host() -> (Served, Client) {
    let served = served().await;
    let client = Client::new(profile(&served)).unwrap();
    (served, client)
}

fn machine(name: &str) -> VmCreate {
    VmCreate {
        template: Some("dwcp/worker".into()),
        ..VmCreate::new(name)
    }
}

async fn right(client: &Client) {
    let right = HostAdd {
        name: "right".into(),
        address: "192.0.2.2:4600".into(),
        fingerprint: digest_of(b"right"),
    };
    client.host_add(&right).await.unwrap();
}

#[tokio::test]
async fn only_the_profiles_authority_is_believed() {
    let (served, _) = host().await;
    let other = common::authority();
    let wrong = Profile {
        ca_pem: other.ca_pem,
        ..profile(&served)
    };
    let began = std::time::Instant::now();
    let error = Client::new(wrong).unwrap().host_this().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(
        began.elapsed().as_millis() < 1_000,
        "a bad certificate is not tried again"
    );
    for (address, ca) in [
        ("http://127.0.0.1:1", &served.ca_pem),
        ("x", &served.ca_pem),
    ] {
        let bad = Profile {
            address: address.into(),
            ca_pem: ca.clone(),
            api_key: "k".into(),
        };
        assert!(
            matches!(Client::new(bad), Err(Error::Profile(_))),
            "{address}"
        );
    }
    for ca_pem in [
        "",
        "not PEM",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let bad = Profile {
            ca_pem: ca_pem.into(),
            ..profile(&served)
        };
        assert!(
            matches!(Client::new(bad), Err(Error::Profile(_))),
            "{ca_pem}"
        );
    }
    assert!(!format!("{:?}", profile(&served)).contains(TEST_KEY));
}

#[tokio::test]
async fn a_refusal_carries_the_problem() {
    let (served, client) = host().await;
    let error = client.vm_get("default", "none").await.unwrap_err();
    assert!(error.is_not_found());
    assert!(error.problem().unwrap().is("not-found"));
    client.policy_apply("tags", "package dwcp\n").await.unwrap();
    let binding = Binding {
        policy: "tags".into(),
        action: "vm.create".into(),
        project: None,
        mode: BindingMode::Enforce,
    };
    client.policy_bind(&binding).await.unwrap();
    let error = client
        .vm_create("default", &machine("web"))
        .await
        .unwrap_err();
    assert!(error.problem().unwrap().is("denied"));
    assert_eq!(error.reasons().len(), 4);
    let stranger = Profile {
        api_key: "wrong".into(),
        ..profile(&served)
    };
    let error = Client::new(stranger)
        .unwrap()
        .host_this()
        .await
        .unwrap_err();
    assert!(error.problem().unwrap().is("unauthenticated"));
}

#[tokio::test]
async fn a_machine_lives_from_create_to_delete() {
    let (_served, client) = host().await;
    right(&client).await;
    let created = client.vm_create("default", &machine("web")).await.unwrap();
    let started = client.operation_wait(&created.operation.id).await.unwrap();
    assert_eq!(started.state, OperationState::Done);

    let operation = client
        .vm_migrate("default", "web", &MigrateRequest::to("right"))
        .await
        .unwrap();
    let mut states = 0;
    let operation = client
        .operation_watch(&operation.id, |_| states += 1)
        .await
        .unwrap();
    assert!(states > 0);
    let migration = operation.migration.unwrap();
    assert_eq!(migration.phase, MigrationPhase::Done);
    assert_eq!(migration.rounds.len(), 3);
    let shown = client
        .migration_get("default", &migration.id)
        .await
        .unwrap();
    assert_eq!(shown, *migration);
    assert_eq!(
        client.migration_list("default").all().await.unwrap().len(),
        1
    );

    let stop = client.vm_stop("default", "web", true).await.unwrap();
    client.operation_wait(&stop.id).await.unwrap();
    let start = client.vm_start("default", "web").await.unwrap();
    client.operation_wait(&start.id).await.unwrap();
    let error = client.vm_delete("default", "web", false).await.unwrap_err();
    assert_eq!(error.problem().unwrap().status, 409);
    let error = client
        .vm_delete_if("default", "web", true, "\"1\"")
        .await
        .unwrap_err();
    assert_eq!(error.problem().unwrap().status, 412);
    client.vm_delete("default", "web", true).await.unwrap();
    assert!(client.vm_list("default").all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failed_operation_is_an_error() {
    let (_served, client) = host().await;
    right(&client).await;
    client
        .vm_create("default", &machine("doubt"))
        .await
        .unwrap();
    let request = MigrateRequest::to("right");
    let operation = client
        .vm_migrate("default", "doubt", &request)
        .await
        .unwrap();
    let error = client.operation_wait(&operation.id).await.unwrap_err();
    let Error::OperationFailed(operation) = error else {
        panic!("{error:?}")
    };
    let id = operation.migration.unwrap().id;
    let resolved = client
        .migration_resolve("default", &id, "right")
        .await
        .unwrap();
    assert_eq!(resolved.phase, MigrationPhase::Failed);
}

#[tokio::test]
async fn lists_are_streams_over_all_parts() {
    let (served, client) = host().await;
    for n in 0..450 {
        served.fake.add_vm(&format!("vm-{n:03}"));
    }
    let mut listing = client.vm_list("default");
    let first = listing.next().await.unwrap().unwrap();
    assert_eq!(first.name, "vm-000");
    let rest: Vec<Vm> = listing.try_collect().await.unwrap();
    assert_eq!(rest.len(), 449);
    let few = client.vm_list("default").first(3).await.unwrap();
    assert_eq!(few.len(), 3);
}

#[tokio::test]
async fn images_are_uploaded_once() {
    let (_served, client) = host().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kernel");
    let content = vec![7; 700_000];
    std::fs::write(&file, &content).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let image = client
        .image_upload("k", &file, move |uploaded| {
            assert_eq!(uploaded.total, 700_000);
            counted.store(uploaded.sent, Ordering::SeqCst);
        })
        .await
        .unwrap();
    assert_eq!(
        (image.digest, image.label),
        (digest_of(&content), "k".into())
    );
    assert_eq!(sent.swap(0, Ordering::SeqCst), 700_000);
    let counted = Arc::clone(&sent);
    let again = client
        .image_upload("other", &file, move |uploaded| {
            counted.store(uploaded.sent, Ordering::SeqCst)
        })
        .await
        .unwrap();
    assert_eq!(again.label, "k");
    assert_eq!(sent.load(Ordering::SeqCst), 0, "it was there already");
    let small = client.image_put("s", "content").await.unwrap();
    assert_eq!(client.image_get(&small.digest).await.unwrap(), small);
    client.image_delete(&small.digest).await.unwrap();
    let absent = directory.path().join("absent");
    let error = client.image_upload("k", &absent, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::File { .. }));
}

#[tokio::test]
async fn a_console_is_read_and_written() {
    let (_served, client) = host().await;
    client.vm_create("default", &machine("web")).await.unwrap();
    let mut console = client.vm_console("default", "web").await.unwrap();
    assert_eq!(console.output.next().await.unwrap().unwrap(), "booted\r\n");
    console.input.write_all(b"hello\r").await.unwrap();
    console.input.flush().await.unwrap();
    let mut echo = [0; 6];
    console.output.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"HELLO\r");
    console.input.send(b"exit\r").await.unwrap();
    assert_eq!(console.output.next().await.unwrap(), None);
    let stop = client.vm_stop("default", "web", true).await.unwrap();
    client.operation_wait(&stop.id).await.unwrap();
    let error = client.vm_console("default", "web").await.unwrap_err();
    assert_eq!(error.problem().unwrap().status, 409);
}

#[tokio::test]
async fn logs_events_and_the_rest_are_read() {
    let (served, client) = host().await;
    client.vm_create("default", &machine("web")).await.unwrap();
    let log = client.vm_log("default", "web", false).await.unwrap();
    let log: Vec<_> = log.try_collect().await.unwrap();
    assert_eq!(log.concat(), b"booted\r\ntick 1\r\n");

    let events = client.event_list(0, 10).await.unwrap();
    assert_eq!(events[0].kind, "vm.created");
    let mut follow = client.event_follow(0);
    assert_eq!(follow.next().await.unwrap().sequence, 1);
    served.fake.happened("t", "test.happened", "x", "later");
    assert_eq!(follow.next().await.unwrap().message, "later");

    let item = client
        .marketplace_get("dwcp/placement-default@1.0.0")
        .await
        .unwrap();
    let install = PluginInstall {
        reference: item.reference.clone(),
        digest: Some(item.digest.clone()),
        grant: item.capabilities.clone(),
    };
    assert!(client.plugin_install(&install).await.unwrap().installed);
    assert_eq!(client.plugin_list().all().await.unwrap().len(), 1);
    client.plugin_get("dwcp/placement-default").await.unwrap();
    client
        .plugin_remove("dwcp/placement-default")
        .await
        .unwrap();
    assert!(matches!(
        client.plugin_get("nothing").await,
        Err(Error::Usage(_))
    ));

    let subject = "projects/default/vms/web";
    let decisions = client.decision_list(Some(subject)).all().await.unwrap();
    let decision = client.decision_get(&decisions[0].id).await.unwrap();
    assert_eq!(decision, decisions[0]);

    client.audit_checkpoint().await.unwrap();
    let entries = client.audit_entries(0, 10).await.unwrap();
    assert!(entries.len() > 2);
    assert!(!client.audit_inclusion(0, 3).await.unwrap().is_empty());
    assert!(!client.audit_consistency(1, 3).await.unwrap().is_empty());
    assert!(client.metrics().await.unwrap().contains("dwcp_vms"));
}
