//! One child process and its pipes, served by the caller's thread alone.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Cancel;

const CHUNK_BYTES: usize = 64 << 10;
/// When a run ends at the latest.
#[derive(Clone, Copy)]
pub(super) struct Until<'a> {
    pub deadline: Instant,
    pub cancel: &'a Cancel,
}

impl Until<'_> {
    /// How long to wait now, or why to wait no more.
    fn left(&self) -> Result<Duration, Ending> {
        if self.cancel.is_cancelled() {
            return Err(Ending::Cancelled);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(Ending::TimedOut),
            false => Ok(left),
        }
    }
}

/// How a child came to its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Exited(ExitStatus),
    TimedOut,
    Cancelled,
}

/// What came out of a child.
pub(super) struct Ended {
    pub ending: Ending,
    pub stdout: Output,
    pub stderr: Output,
}

/// The beginning of what came out of a pipe.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub bytes: Vec<u8>,
    /// There was more than was asked for.
    pub is_cut: bool,
}

/// A child that is dead and reaped once this is dropped.
struct Process(Child);

impl Process {
    fn stop(&mut self) -> io::Result<ExitStatus> {
        // Signals go out only while the child is not reaped: until then its pid cannot be someone
        // else's.
        if self.0.try_wait()?.is_none() {
            // It has no group of its own until its `setsid`, and no other process ever: ESRCH is no
            // trouble.
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            self.0.kill()?;
        }
        self.0.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Feeds `input` to the child and keeps `limit` bytes of each of its outputs until it ends or must;
/// then it is dead and reaped, also on an error. Its three streams must be pipes. One that carries
/// more than the limit is closed: who writes on gets `EPIPE`, and costs nobody here anything.
pub(super) fn pump(
    mut child: Child,
    input: &[u8],
    limit: usize,
    until: Until<'_>,
) -> io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut process = Process(child);
    let mut streams = Streams {
        exit: pidfd_open(Pid::from_child(&process.0), PidfdFlags::empty())?,
        cancelled: until.cancel.watch()?,
        stdin: Feed::new(stdin, input)?,
        stdout: Drain::new(stdout, limit)?,
        stderr: Drain::new(stderr, limit)?,
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    let early = loop {
        match until.left() {
            Err(early) => break Some(early),
            Ok(left) if streams.serve(left, &mut chunk)? => break None,
            Ok(_) => {}
        }
    };
    let status = process.stop()?;
    // What the dead child wrote is in the pipes; nobody else can write to them.
    streams.stdout.drain(&mut chunk)?;
    streams.stderr.drain(&mut chunk)?;
    Ok(Ended {
        ending: early.unwrap_or(Ending::Exited(status)),
        stdout: streams.stdout.output,
        stderr: streams.stderr.output,
    })
}

struct Streams<'a> {
    exit: OwnedFd,
    cancelled: Arc<OwnedFd>,
    stdin: Feed<'a>,
    stdout: Drain<ChildStdout>,
    stderr: Drain<ChildStderr>,
}

impl Streams<'_> {
    /// Waits until something can be done, does it, and says whether the child has ended.
    fn serve(&mut self, left: Duration, chunk: &mut [u8]) -> io::Result<bool> {
        let (exited, stdin, stdout, stderr) = self.wait(left)?;
        if stdin {
            self.stdin.feed()?;
        }
        if stdout {
            self.stdout.step(chunk)?;
        }
        if stderr {
            self.stderr.step(chunk)?;
        }
        Ok(exited)
    }

    fn wait(&self, left: Duration) -> io::Result<(bool, bool, bool, bool)> {
        let streams = [
            Some((self.exit.as_fd(), PollFlags::IN)),
            Some((self.cancelled.as_fd(), PollFlags::IN)),
            (self.stdin.pipe.as_ref()).map(|pipe| (pipe.as_fd(), PollFlags::OUT)),
            (self.stdout.pipe.as_ref()).map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            (self.stderr.pipe.as_ref()).map(|pipe| (pipe.as_fd(), PollFlags::IN)),
        ];
        let mut fds: Vec<PollFd<'_>> = streams
            .iter()
            .flatten()
            .map(|(fd, events)| PollFd::from_borrowed_fd(*fd, *events))
            .collect();
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, false, false, false)),
            Err(error) => return Err(error.into()),
        }
        let mut polled = fds.iter();
        let mut is_ready = |stream: &Option<_>| {
            let fd = stream.as_ref().and_then(|_| polled.next());
            fd.is_some_and(|fd| !fd.revents().is_empty())
        };
        let [exited, cancelled, stdin, stdout, stderr] = &streams;
        let exited = is_ready(exited);
        // Who cancelled is found out where the time that is left is asked for.
        is_ready(cancelled);
        Ok((exited, is_ready(stdin), is_ready(stdout), is_ready(stderr)))
    }
}

/// Writes what a child has room for.
struct Feed<'a> {
    pipe: Option<ChildStdin>,
    rest: &'a [u8],
}

impl<'a> Feed<'a> {
    fn new(pipe: Option<ChildStdin>, rest: &'a [u8]) -> io::Result<Self> {
        pipe.as_ref()
            .map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        let pipe = pipe.filter(|_| !rest.is_empty());
        Ok(Self { pipe, rest })
    }

    fn feed(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        match pipe.write(self.rest) {
            Ok(written) => self.rest = &self.rest[written..],
            Err(error) if is_retry(&error) => {}
            // The child reads no more, which is its right.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.rest = &[],
            Err(error) => return Err(error),
        }
        if self.rest.is_empty() {
            self.pipe = None;
        }
        Ok(())
    }
}

/// Reads up to its limit; then the pipe is closed.
struct Drain<P> {
    pipe: Option<P>,
    output: Output,
    limit: usize,
}

impl<P: Read + AsFd> Drain<P> {
    fn new(pipe: Option<P>, limit: usize) -> io::Result<Self> {
        pipe.as_ref()
            .map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        Ok(Self {
            pipe,
            output: Output::default(),
            limit,
        })
    }

    /// One read; whether there may be more.
    fn step(&mut self, chunk: &mut [u8]) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        match pipe.read(chunk) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                let room = self.limit - self.output.bytes.len();
                (self.output.bytes).extend_from_slice(&chunk[..count.min(room)]);
                if count > room {
                    self.output.is_cut = true;
                    self.pipe = None;
                }
                return Ok(true);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    fn drain(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        while self.step(chunk)? {}
        Ok(())
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
