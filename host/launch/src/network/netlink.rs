//! Netlink messages, as far as the launcher needs them: built, sent, acknowledged; lists read.
//!
//! Synchronous and without any state between requests: each one opens nothing, sends one datagram and waits for the
//! kernel's own answer, which comes at once. What the messages mean is known in `links` and `filter`; here is their
//! form only (netlink(7), rtnetlink(7)).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const ALIGN: usize = 4;
/// The kernel's answers to a list come in datagrams of at most this size; see `NLMSG_GOODSIZE` and netlink(7).
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most datagrams of one list; a machine with more routes than fit in these is beyond what is understood here.
const DATAGRAMS_MAX: usize = 4096;
/// `NLMSGERR_ATTR_MSG`: a sentence of the kernel's.
const ERROR_TEXT: u16 = 1;

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("The kernel refused{}", .text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// Which error.
        #[source]
        errno: Errno,
        /// Its own words, if it has any.
        text: Option<String>,
    },
    /// The socket failed.
    #[error("The kernel could not be asked")]
    Socket(#[from] Errno),
    /// The answer is none.
    #[error("The kernel's answer could not be understood")]
    Malformed,
}

impl NetlinkError {
    /// The kernel's error, if it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket(_) | Self::Malformed => None,
        }
    }
}

/// One message, being built.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of `kind`, with the header that its family has after netlink's own.
    pub fn new(kind: u16, flags: i32, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        // All flags that there are fit in 16 bits.
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value);
        self.end(start);
        self
    }

    /// Adds a text that ends with a zero.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    /// Adds an attribute that consists of others.
    pub fn nested(self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        self.nested_after(kind, &[], build)
    }

    /// The same, with a header before them.
    pub fn nested_after(
        mut self,
        kind: u16,
        header: &[u8],
        build: impl FnOnce(Self) -> Self,
    ) -> Self {
        let start = self.begin(kind | libc::NLA_F_NESTED as u16);
        self.bytes.extend_from_slice(header);
        self.pad();
        let mut inner = build(self);
        inner.end(start);
        inner
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        // Whatever is built here is far below 64 KiB.
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(padded, 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A connection to one family of the kernel's.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Connects, in the network namespace that the caller is in.
    pub fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // An answer that does not come is an error, not a launcher that hangs.
        let timeout = nix::sys::time::TimeVal::new(5, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            // SAFETY: the kernel reads one int. An older kernel that refuses gives errors without words.
            unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
        }
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one message and waits until it is carried out.
    pub fn request(&mut self, message: Message) -> Result<(), NetlinkError> {
        self.batch(vec![message])
    }

    /// Sends messages as one datagram. The first that asks for an acknowledgement and is refused is the error.
    pub fn batch(&mut self, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let mut datagram = Vec::new();
        let mut open = Vec::new();
        for message in messages {
            let sequence = self.next_sequence();
            let bytes = message.finish(sequence);
            let flags = u16::from_ne_bytes([bytes[6], bytes[7]]);
            if i32::from(flags) & libc::NLM_F_ACK != 0 {
                open.push(sequence);
            }
            datagram.extend(bytes);
        }
        let mine = open.clone();
        send(self.socket.as_raw_fd(), &datagram, MsgFlags::empty())?;
        let mut result = Ok(());
        while !open.is_empty() {
            for answer in parse(&self.receive()?)? {
                // What was left over from a request that timed out.
                if !mine.contains(&answer.sequence) {
                    continue;
                }
                open.retain(|sequence| *sequence != answer.sequence);
                if answer.kind == libc::NLMSG_ERROR as u16 && result.is_ok() {
                    result = acknowledged(answer.body);
                }
            }
            // A batch that fails as a whole is not acknowledged message by message.
            if result.is_err() {
                break;
            }
        }
        result
    }

    /// Asks for a list; hands every entry (its family's header and its attributes) to `each`.
    pub fn list(
        &mut self,
        kind: u16,
        family_header: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let sequence = self.next_sequence();
        let message = Message::new(kind, flags, family_header).finish(sequence);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        for _ in 0..DATAGRAMS_MAX {
            for answer in parse(&self.receive()?)? {
                match i32::from(answer.kind) {
                    _ if answer.sequence != sequence => {}
                    // It ends with what stopped it, if anything did.
                    libc::NLMSG_DONE if answer.body.len() < 4 => return Ok(()),
                    libc::NLMSG_DONE => return acknowledged(answer.body),
                    libc::NLMSG_ERROR => acknowledged(answer.body)?,
                    _ => each(answer.body),
                }
            }
        }
        Err(NetlinkError::Malformed)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of one datagram.
fn parse(mut datagram: &[u8]) -> Result<Vec<Answer<'_>>, NetlinkError> {
    let mut answers = Vec::new();
    while datagram.len() >= HEADER_BYTES {
        let length = word(datagram, 0) as usize;
        let (Some(message), true) = (datagram.get(..length), length >= HEADER_BYTES) else {
            return Err(NetlinkError::Malformed);
        };
        answers.push(Answer {
            kind: half(message, 4),
            sequence: word(message, 8),
            body: &message[HEADER_BYTES..],
        });
        let next = length.next_multiple_of(ALIGN).min(datagram.len());
        datagram = &datagram[next..];
    }
    Ok(answers)
}

/// Reads an `NLMSG_ERROR`: zero means yes.
fn acknowledged(body: &[u8]) -> Result<(), NetlinkError> {
    if body.len() < 4 {
        return Err(NetlinkError::Malformed);
    }
    let code = word(body, 0) as i32;
    if code == 0 {
        return Ok(());
    }
    // The error, the header of the message that it is about, then attributes.
    let text = body.get(4 + HEADER_BYTES..).and_then(|rest| {
        let (_, value) = attributes(rest).find(|(kind, _)| *kind == ERROR_TEXT)?;
        let words = String::from_utf8_lossy(value.split(|byte| *byte == 0).next()?);
        Some(words.chars().take(200).collect())
    });
    Err(NetlinkError::Refused {
        errno: Errno::from_raw(code.wrapping_neg()),
        text,
    })
}

/// The attributes of an entry: kinds and values. Ends at the first that makes no sense.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if rest.len() < ATTRIBUTE_HEADER_BYTES {
            return None;
        }
        let length = usize::from(half(rest, 0));
        let kind = half(rest, 2) & libc::NLA_TYPE_MASK as u16;
        let value = rest.get(ATTRIBUTE_HEADER_BYTES..length)?;
        rest = &rest[length.next_multiple_of(ALIGN).min(rest.len())..];
        Some((kind, value))
    })
}

/// Four bytes at `at`, or zero when there are none.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_ne_bytes(*found.unwrap_or(&[0; 4]))
}

/// Two bytes at `at`, or zero when there are none.
pub fn half(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u16::from_ne_bytes(*found.unwrap_or(&[0; 2]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_has_it() {
        let message = Message::new(16, 5, &[1, 2, 3, 4])
            .text(3, "ab")
            .nested(18, |inner| inner.attribute(1, &[9]));
        let bytes = message.finish(7);
        assert_eq!(word(&bytes, 0) as usize, bytes.len());
        assert_eq!(
            (half(&bytes, 4), half(&bytes, 6), word(&bytes, 8)),
            (16, 5, 7)
        );
        let found: Vec<_> = attributes(&bytes[20..]).collect();
        assert_eq!(found[0], (3, b"ab\0".as_slice()));
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1).next(), Some((1, [9].as_slice())));
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        // A link that is not there; the same without rights.
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = netlink
            .request(Message::new(libc::RTM_DELLINK, flags, &header))
            .unwrap_err();
        assert!(
            matches!(error.errno(), Some(Errno::ENODEV | Errno::EPERM)),
            "{error:?}"
        );
    }

    proptest! {
        #[test]
        fn no_answer_harms(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(answers) = parse(&bytes) {
                for answer in answers {
                    let _ = acknowledged(answer.body);
                    prop_assert!(attributes(answer.body).count() <= 64);
                }
            }
        }
    }
}
