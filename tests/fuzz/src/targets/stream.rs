//! A TLS stream before and within its handshake, on both sides: anyone may send these bytes.
//!
//! What comes after the handshake needs a key that the peer pins; the other targets stand for that.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_wire::stream::SecureStream;
use dwcp_wire::tls::{self, Use};

use super::receiver::{identity, tls as server};

/// Reached only by a stream that waits for what never comes.
const DEADLINE: Duration = Duration::from_secs(5);

/// The first byte chooses the side, the rest is what the peer sends before it hangs up.
pub(super) fn stream(input: &[u8]) {
    let Some((side, bytes)) = input.split_first() else {
        return;
    };
    let (socket, _peer) = match socket_with(bytes) {
        Ok(pair) => pair,
        Err(error) => panic!("{error}"),
    };
    let stream = if side % 2 == 0 {
        SecureStream::accept(socket, server(), DEADLINE)
    } else {
        let identity = identity();
        match tls::client(identity, &[identity.fingerprint()], Use::Transfer) {
            Ok(config) => SecureStream::connect(socket, config, DEADLINE),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(stream.is_err(), "a handshake without a key");
}

/// A socket from which `bytes` can be read, and then the end; and the peer, who takes what is sent and never answers.
/// TLS does not ask of what kind a socket is.
fn socket_with(bytes: &[u8]) -> std::io::Result<(TcpStream, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(bytes)?;
    theirs.shutdown(Shutdown::Write)?;
    Ok((TcpStream::from(OwnedFd::from(ours)), theirs))
}
