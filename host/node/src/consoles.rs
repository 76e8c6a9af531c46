//! A console and a log as the API gives them: bytes in pieces, for as long as somebody reads them.

use dwcp_api::service::{ByteStream, Console};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Both ways of a console. Dropping its output ends it, whatever the guest has not read by then.
pub(crate) fn attach(socket: tokio::net::UnixStream) -> Console {
    let (reader, mut writer) = socket.into_split();
    let (input, mut typed) = tokio::sync::mpsc::channel::<bytes::Bytes>(64);
    let writing = tokio::spawn(async move {
        while let Some(bytes) = typed.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let writing = Ends(writing);
    let output = pieces(reader).map(move |piece| {
        let _writing = &writing;
        piece
    });
    Console {
        output: Box::pin(output),
        input,
    }
}

/// A task that ends when this is dropped.
struct Ends(tokio::task::JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is read, in pieces, as it comes.
pub(crate) fn pieces(reader: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> ByteStream {
    Box::pin(futures::stream::unfold(reader, |mut reader| async move {
        let mut piece = vec![0; 64 << 10];
        match reader.read(&mut piece).await {
            Ok(0) => None,
            Ok(got) => {
                piece.truncate(got);
                Some((Ok(bytes::Bytes::from(piece)), reader))
            }
            Err(error) => Some((Err(error), reader)),
        }
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_console_whose_reader_left_ends_though_the_guest_reads_nothing() {
        let (ours, mut guest) = tokio::net::UnixStream::pair().unwrap();
        let Console { output, input } = attach(ours);
        let piece = bytes::Bytes::from(vec![0; 64 << 10]);
        // Until neither the socket nor the queue takes any more.
        let short = std::time::Duration::from_millis(200);
        while let Ok(sent) = tokio::time::timeout(short, input.send(piece.clone())).await {
            sent.unwrap();
        }
        drop(output);
        input.closed().await;
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.is_empty());
    }
}
