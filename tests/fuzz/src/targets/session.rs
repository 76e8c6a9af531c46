//! What two daemons say to each other. The file is the node's own, compiled here a second time: the node's crate brings
//! the sandbox and its compiler, which are not to be instrumented.

#[allow(dead_code, missing_docs)]
#[path = "../../../../host/node/src/protocol.rs"]
mod protocol;

use futures::FutureExt;
use serde::{Serialize, de::DeserializeOwned};

use crate::input::read_json;
use protocol::{Ask, Offer, Reply, receive};

/// Messages of one session, once as questions and once as answers.
pub(super) fn session(input: &[u8]) {
    messages::<Ask>(input);
    messages::<Reply>(input);
    read_json::<Ask>(input);
    read_json::<Reply>(input);
    read_json::<Offer>(input);
}

fn messages<T: Serialize + DeserializeOwned>(mut bytes: &[u8]) {
    loop {
        // Reading from a slice never waits.
        let received = receive::<T>(&mut bytes).now_or_never();
        match received.map(|received| received.map(|message| serde_json::to_vec(&message))) {
            Some(Ok(Ok(written))) => {
                assert!(
                    read_json::<T>(&written).is_some(),
                    "it cannot be read again"
                );
            }
            Some(Ok(Err(error))) => panic!("what was read cannot be written: {error}"),
            Some(Err(_)) => return,
            None => panic!("a slice was waited for"),
        }
    }
}
