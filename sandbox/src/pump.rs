//! One child process and its pipes, served by the caller's thread alone.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

const CHUNK_BYTES: usize = 64 << 10;
/// How often the time that is left is asked for, which may end at any moment.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What came out of a child.
pub(super) struct Ended {
    /// `None`: no time was left.
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// A child that is dead and reaped once this is dropped.
struct Process(Child);

impl Process {
    fn stop(&mut self) -> io::Result<ExitStatus> {
        // Signals go out only while the child is not reaped: until then its pid cannot be someone else's.
        if self.0.try_wait()?.is_none() {
            // It has no group of its own until its `setsid`, and no other process ever: ESRCH is no trouble.
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

/// Feeds `input` to the child and keeps `limit` bytes of each of its outputs until it ends or no time is `left`;
/// then it is dead and reaped, also on an error. Its three streams must be pipes.
pub(super) fn pump(
    mut child: Child,
    input: &[u8],
    limit: usize,
    left: &dyn Fn() -> Duration,
) -> io::Result<Ended> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut process = Process(child);
    let mut streams = Streams {
        exit: pidfd_open(Pid::from_child(&process.0), PidfdFlags::empty())?,
        stdin: Feed::new(stdin, input)?,
        stdout: Drain::new(stdout, limit)?,
        stderr: Drain::new(stderr, limit)?,
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut has_ended = false;
    while !has_ended {
        let left = left();
        if left.is_zero() {
            break;
        }
        has_ended = streams.serve(left.min(CHECK_INTERVAL), &mut chunk)?;
    }
    let status = process.stop()?;
    // What the dead child wrote is in the pipes; nobody else can write to them.
    streams.stdout.drain(&mut chunk)?;
    streams.stderr.drain(&mut chunk)?;
    Ok(Ended {
        status: has_ended.then_some(status),
        stdout: streams.stdout.kept,
        stderr: streams.stderr.kept,
    })
}

struct Streams<'a> {
    exit: OwnedFd,
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
        let [exited, stdin, stdout, stderr] = &streams;
        Ok((
            is_ready(exited),
            is_ready(stdin),
            is_ready(stdout),
            is_ready(stderr),
        ))
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

/// Reads all, keeps the beginning.
struct Drain<P> {
    pipe: Option<P>,
    kept: Vec<u8>,
    limit: usize,
}

impl<P: Read + AsFd> Drain<P> {
    fn new(pipe: Option<P>, limit: usize) -> io::Result<Self> {
        pipe.as_ref()
            .map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        Ok(Self {
            pipe,
            kept: Vec::new(),
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
                let room = self.limit - self.kept.len();
                self.kept.extend_from_slice(&chunk[..count.min(room)]);
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
