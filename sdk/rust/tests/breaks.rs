//! Connections that break: what was asked for happens once, and streams go on where they were.
#![allow(clippy::unwrap_used)]

#[path = "../../../host/api/tests/common/mod.rs"]
mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::{Fake, Served, TEST_KEY, served};
use dwcp_sdk::types::{MigrateRequest, OperationState, VmCreate};
use dwcp_sdk::{Client, Error, Profile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on, and cuts the first one whose answer comes while `lost` says so.
async fn losing(served: &Served, lost: fn(&Fake) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (to, fake) = (served.address, Arc::clone(&served.fake));
    tokio::spawn(async move {
        let mut cut = false;
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            if cut {
                tokio::spawn(async move {
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
                continue;
            }
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let mut piece = vec![0; 64 << 10];
            let answers = async {
                while let Ok(read @ 1..) = from_server.read(&mut piece).await {
                    if lost(&fake) {
                        return true;
                    }
                    to_client.write_all(&piece[..read]).await.unwrap();
                }
                false
            };
            cut = tokio::select! {
                cut = answers => cut,
                _ = tokio::io::copy(&mut from_client, &mut to_server) => false,
            };
        }
    });
    address
}

/// Passes connections on, and cuts all of them whenever the number changes.
async fn cutting(served: &Served) -> (SocketAddr, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, cuts) = watch::channel(0);
    let to = served.address;
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    (address, sender)
}

fn client(served: &Served, address: SocketAddr) -> Client {
    Client::new(Profile {
        address: format!("https://{address}"),
        ca_pem: served.ca_pem.clone(),
        api_key: TEST_KEY.into(),
    })
    .unwrap()
}

fn machine(name: &str) -> VmCreate {
    VmCreate {
        template: Some("dwcp/worker".into()),
        ..VmCreate::new(name)
    }
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_happens_once() {
    let served = served().await;
    let address = losing(&served, |fake| fake.created() > 0).await;
    let client = client(&served, address);
    let created = client.vm_create("default", &machine("web")).await.unwrap();
    assert_eq!(created.vm.name, "web");
    assert_eq!(served.fake.created(), 1);
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_no_error() {
    let served = served().await;
    served.fake.add_vm("web");
    let address = losing(&served, |fake| fake.vms() == 0).await;
    let client = client(&served, address);
    client.vm_delete("default", "web", true).await.unwrap();
    let error = client.vm_delete("default", "web", true).await.unwrap_err();
    assert!(error.is_not_found(), "a machine that never was is one");
}

#[tokio::test]
async fn events_go_on_after_a_cut_without_loss_or_repetition() {
    let served = served().await;
    let (address, cuts) = cutting(&served).await;
    let mut follow = client(&served, address).event_follow(0);
    for number in 1..=6 {
        let message = number.to_string();
        served.fake.happened("t", "test.happened", "x", &message);
        let event = follow.next().await.unwrap();
        assert_eq!((event.sequence, event.message), (number, message));
        if number % 2 == 0 {
            cuts.send_modify(|cut| *cut += 1);
        }
    }
}

#[tokio::test]
async fn an_operation_is_waited_for_through_cuts() {
    let served = served().await;
    let (address, cuts) = cutting(&served).await;
    let client = client(&served, address);
    let right = dwcp_sdk::types::HostAdd {
        name: "right".into(),
        address: "192.0.2.2:4600".into(),
        fingerprint: common::digest_of(b"right"),
    };
    client.host_add(&right).await.unwrap();
    served.fake.add_vm("web");
    let operation = client
        .vm_migrate("default", "web", &MigrateRequest::to("right"))
        .await
        .unwrap();
    let mut seen = 0;
    let operation = client
        .operation_watch(&operation.id, |_| {
            seen += 1;
            if seen == 1 {
                cuts.send_modify(|cut| *cut += 1);
            }
        })
        .await
        .unwrap();
    assert_eq!(operation.state, OperationState::Done);
}

#[tokio::test]
async fn a_host_that_is_not_there_is_said_to_be() {
    let served = served().await;
    let address = served.address;
    let client = client(&served, address);
    served.stop().await;
    let error = client.host_this().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()));
}
