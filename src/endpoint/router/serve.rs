//! The writer's end of a forwarded session: a session of this region's writer, driven by another region's frames.
//!
//! Decides nothing about statements: it runs them one after the other and sends what they came to. When the stream ends, whatever runs
//! is cancelled and an open transaction is rolled back. Who may open a stream was decided by the link (mutual TLS names the
//! region); there is no second login. Driven by one task per stream.

use super::wire::{self, Answer, Frames, ROWS_BYTES, Request, Said, Standing, What, decode_request};
use crate::head::embedded::{Engine, Session};
use crate::head::sql::{Outcome, Row, SqlError};
use bytes::BytesMut;
use futures::FutureExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Requests that wait behind the one that runs. The other side sends fewer ahead.
const REQUESTS_MAX: usize = 1024;

/// Serves one stream until it ends or makes no sense.
pub async fn serve(engine: Arc<Engine>, recv: impl AsyncRead + Unpin + Send, send: impl AsyncWrite + Unpin + Send) {
    let session = engine.writer_session();
    let canceller = session.canceller();
    let (queue, requests) = mpsc::channel(REQUESTS_MAX);
    // The number of the request that runs, plus one.
    let running = AtomicU64::new(0);
    let cancel = |id: u32| {
        if running.load(Ordering::SeqCst) == u64::from(id) + 1 {
            canceller.cancel();
        }
    };
    let mut answering = Answering { engine, session, send, out: BytesMut::new(), running: &running };
    let ended = tokio::select! {
        ended = read(Frames::new(recv), &queue, cancel) => ended,
        ended = answering.run(requests) => ended,
    };
    canceller.cancel();
    if let Err(reason) = ended {
        tracing::debug!(reason, "a forwarded session ended");
    }
}

async fn read(
    mut frames: Frames<impl AsyncRead + Unpin + Send>,
    queue: &mpsc::Sender<Request>,
    cancel: impl Fn(u32),
) -> Result<(), String> {
    frames.hello().await?;
    while let Some(frame) = frames.next().await? {
        let request = decode_request(frame).map_err(|e| e.to_string())?;
        if request.what == What::Cancel {
            cancel(request.id);
        } else if queue.try_send(request).is_err() {
            return Err(format!("more than {REQUESTS_MAX} requests at once"));
        }
    }
    Ok(())
}

struct Answering<'a, W> {
    engine: Arc<Engine>,
    session: Session,
    send: W,
    out: BytesMut,
    running: &'a AtomicU64,
}

impl<W: AsyncWrite + Unpin + Send> Answering<'_, W> {
    async fn run(&mut self, mut requests: mpsc::Receiver<Request>) -> Result<(), String> {
        while let Some(request) = requests.recv().await {
            self.running.store(u64::from(request.id) + 1, Ordering::SeqCst);
            self.one(request).await?;
            self.running.store(0, Ordering::SeqCst);
            // As late as it can be asked: what must not be answered any more is not, and the other side sees the stream end.
            self.session.may_answer().map_err(|e| e.message)?;
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), String> {
        let sent = self.send.write_all(&self.out).await;
        self.out.clear();
        sent.map_err(|e| e.to_string())
    }

    fn standing(&self) -> Standing {
        Standing { tx: self.session.tx(), schema: self.engine.schema_version() }
    }

    fn put(&mut self, id: u32, said: Said) {
        Answer { id, said }.put(&mut self.out);
    }

    fn put_error(&mut self, id: u32, error: SqlError) {
        let standing = self.standing();
        self.put(id, Said::Error { standing, error });
    }

    async fn one(&mut self, request: Request) -> Result<(), String> {
        let Request { id, begin, what } = request;
        if let Some(mode) = begin {
            // One that is still open was given up by the other side.
            let begun = match self.session.rollback().await {
                Ok(()) => self.session.begin(mode).await,
                Err(error) => Err(error),
            };
            if let Err(error) = begun {
                self.put_error(id, error);
                return Ok(());
            }
        }
        match self.carry_out(id, what).await? {
            Ok(()) => {}
            Err(error) => {
                if begin.is_some() && error.elsewhere {
                    let _ = self.session.rollback().await;
                }
                self.put_error(id, error);
            }
        }
        Ok(())
    }

    /// The outer error ends the stream.
    async fn carry_out(&mut self, id: u32, what: What) -> Result<Result<(), SqlError>, String> {
        let yes = match what {
            What::Execute { sql, params } => {
                return match self.session.execute(&sql, params).await {
                    Ok(Outcome::Done { changed }) => {
                        let standing = self.standing();
                        self.put(id, Said::Done { standing, changed });
                        Ok(Ok(()))
                    }
                    Ok(Outcome::Rows { columns, rows }) => {
                        self.put(id, Said::Columns(columns));
                        self.send_rows(id, rows).await
                    }
                    Err(error) => Ok(Err(error)),
                };
            }
            What::Describe { sql } => {
                return Ok(self.session.describe(&sql).await.map(|description| {
                    let standing = self.standing();
                    self.put(id, Said::Described { standing, description });
                }));
            }
            What::Ping => {
                let serves = self.engine.serves_writer_port().is_ok();
                self.put(id, Said::Pong { serves });
                return Ok(Ok(()));
            }
            What::Commit => self.session.commit().await,
            What::Rollback => self.session.rollback().await.map(|()| true),
            What::Savepoint { name } => self.session.savepoint(&name).await.map(|()| true),
            What::Release { name } => self.session.release(&name).await.map(|()| true),
            What::RollbackTo { name } => self.session.rollback_to(&name).await.map(|()| true),
            What::Cancel => unreachable!("BUG: cancels are not queued"),
        };
        Ok(yes.map(|yes| {
            let standing = self.standing();
            self.put(id, Said::Said { standing, yes });
        }))
    }

    async fn send_rows(&mut self, id: u32, mut rows: crate::head::sql::RowStream) -> Result<Result<(), SqlError>, String> {
        loop {
            // What is there goes out together; nothing that is there waits for what is not.
            let batch = match rows.recv().now_or_never() {
                Some(batch) => batch,
                None => {
                    self.flush().await?;
                    rows.recv().await
                }
            };
            match batch {
                Some(Ok(batch)) => self.put_rows(id, batch).await?,
                Some(Err(error)) => return Ok(Err(error)),
                None => break,
            }
        }
        let standing = self.standing();
        self.put(id, Said::End { standing });
        Ok(Ok(()))
    }

    /// In frames of moderate size, whatever the batch is.
    async fn put_rows(&mut self, id: u32, batch: Vec<Row>) -> Result<(), String> {
        let mut part = Vec::new();
        let mut bytes = 0;
        for row in batch {
            bytes += wire::row_bytes(&row);
            part.push(row);
            if bytes >= ROWS_BYTES {
                self.put(id, Said::Rows(std::mem::take(&mut part)));
                bytes = 0;
                self.flush().await?;
            }
        }
        if !part.is_empty() {
            self.put(id, Said::Rows(part));
        }
        Ok(())
    }
}
