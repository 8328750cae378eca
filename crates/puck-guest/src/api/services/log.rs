//! The log of a service: a file that the sprite's programs can read, with one older file beside it.

use api::service::{LogFiles, ServiceEvent, ServiceHappening, ServiceName};
use jiff::Timestamp;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// A log that has grown so far becomes the older one.
pub(super) const LOG_BYTES_MAX: u64 = 384 * 1024;

/// Where programs in the sprite find the logs.
const DIRECTORY: &str = "/.sprite/logs/services";

/// The log of one service.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    name: ServiceName,
    file: Mutex<Option<(File, u64)>>,
}

impl Log {
    /// The log in a directory of logs; nothing is written yet.
    pub(super) fn new(directory: PathBuf, name: &ServiceName) -> Self {
        let path = directory.join(format!("{name}.log"));
        Self { path, name: name.clone(), file: Mutex::new(None) }
    }

    /// Where programs in the sprite find it.
    pub(super) fn files(&self) -> LogFiles {
        let file = format!("{DIRECTORY}/{}.log", self.name);
        LogFiles { combined: file.clone(), stdout: file.clone(), stderr: file }
    }

    /// Makes the file, so that whoever looks for it finds it before the first line.
    pub(super) fn begin(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.append(&mut file, b"") {
            tracing::debug!(%error, service = %self.name, "make a log");
        }
    }

    /// Writes a line. A log that cannot be written costs its lines and nothing else.
    pub(super) fn write(&self, stream: &str, text: &str) {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ");
        let line = format!("{now} [{stream}] {}\n", text.trim_end_matches('\n'));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.append(&mut file, line.as_bytes()) {
            tracing::debug!(%error, service = %self.name, "write a log");
            *file = None;
        }
    }

    fn append(&self, open: &mut Option<(File, u64)>, line: &[u8]) -> io::Result<()> {
        if open.as_ref().is_some_and(|(_, length)| *length >= LOG_BYTES_MAX) {
            fs::rename(&self.path, self.older())?;
            *open = None;
        }
        let (file, length) = match open {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
                let length = file.metadata()?.len();
                open.insert((file, length))
            }
        };
        file.write_all(line)?;
        *length += line.len() as u64;
        Ok(())
    }

    /// The last lines that are kept, as they were told when they came.
    pub(super) fn last(&self, lines: usize) -> Vec<ServiceEvent> {
        let mut text = Vec::new();
        for path in [self.older(), self.path.clone()] {
            match read(&path) {
                Ok(part) => text.extend(part),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::debug!(%error, service = %self.name, "read a log"),
            }
        }
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().filter_map(|line| parse(line)).collect()
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }
}

fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2 * LOG_BYTES_MAX)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn parse(line: &str) -> Option<ServiceEvent> {
    let (time, rest) = line.split_once(" [")?;
    let (stream, text) = rest.split_once("] ")?;
    let time: Timestamp = time.parse().ok()?;
    let data = format!("{text}\n");
    let what = match stream {
        "stdout" => ServiceHappening::Stdout { data },
        "stderr" => ServiceHappening::Stderr { data },
        _ => ServiceHappening::Error { data },
    };
    Some(ServiceEvent { what, timestamp: time.as_millisecond() })
}

#[cfg(test)]
mod tests {
    use super::{LOG_BYTES_MAX, Log};
    use api::service::ServiceHappening;
    use std::fs;

    #[test]
    fn lines_come_back_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().to_owned(), &"web".parse().unwrap());
        assert!(log.last(10).is_empty());
        log.write("stdout", "one [x] y\n");
        log.write("stderr", "");
        let what: Vec<_> = log.last(10).into_iter().map(|event| event.what).collect();
        assert_eq!(
            what,
            [
                ServiceHappening::Stdout { data: "one [x] y\n".into() },
                ServiceHappening::Stderr { data: "\n".into() }
            ]
        );
        let line = "x".repeat(1000);
        for _ in 0..LOG_BYTES_MAX / 1000 * 5 {
            log.write("stdout", &line);
        }
        let kept: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(kept <= 2 * (LOG_BYTES_MAX + 2000), "{kept}");
        assert_eq!(log.last(400).len(), 400, "the older file counts");
        assert_eq!(log.last(1).len(), 1);
    }
}
