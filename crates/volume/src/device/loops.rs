//! Loop devices, by the ioctls of `linux/loop.h`.

use super::{DEADLINE, poll_until};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat},
    io::Errno,
    ioctl::{IntegerSetter, Ioctl, IoctlOutput, Opcode, ioctl},
};
use std::{
    ffi::c_void,
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

const LOOP_MAJOR: u32 = 7;
const CONTROL_MISC_MAJOR: u32 = 10;
const CONTROL_MISC_MINOR: u32 = 237;

/// `LO_FLAGS_READ_ONLY`.
const FLAG_READ_ONLY: u32 = 1;
/// What `linux/loop.h` calls `LO_FLAGS_AUTOCLEAR`: the device becomes free when its last user closes it.
const FLAG_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: no second copy of the disk in the page cache.
const FLAG_DIRECT_IO: u32 = 16;

/// How far the kernel reads ahead of a program that reads in sequence. Its default of 128 KiB makes four times as many
/// requests of a fast stream.
const READ_AHEAD_BYTES: usize = 512 << 10;

const SECTOR_BYTES: u32 = crate::BLOCK_BYTES as u32;

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// A configured loop device. While this is open, it stays.
#[derive(Debug)]
pub(super) struct Loop {
    file: File,
    path: PathBuf,
}

impl Loop {
    /// Puts a free loop device on the file. Another process may take the device that was free: then with the next.
    pub(super) fn configure(backing: &File, generation: u64, access: Access) -> io::Result<Self> {
        let control = open_node(Path::new("/dev/loop-control"), FileType::CharacterDevice, || {
            makedev(CONTROL_MISC_MAJOR, CONTROL_MISC_MINOR)
        })?;
        poll_until(Instant::now() + DEADLINE, || {
            let number = get_free(&control)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = open_node(&path, FileType::BlockDevice, || makedev(LOOP_MAJOR, number))?;
            match configure(&file, backing, generation, access) {
                Ok(()) => {
                    read_ahead(&file)?;
                    Ok(Some(Self { file, path }))
                }
                Err(Errno::BUSY) => Ok(None),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Frees the device and waits until it is free.
    pub(super) fn free(self, deadline: Instant) -> io::Result<()> {
        let Self { file, path } = self;
        // An exclusive open fails while anything has it mounted, here or in another mount namespace.
        let exclusive = poll_until(deadline, || {
            let open = OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::EXCL.bits().cast_signed())
                .open(&path);
            match open {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        let backing = status(&exclusive)?;
        drop(exclusive);
        clear(&file)?;
        drop(file);
        // Opened anew for each look: while somebody has it open, be it to look, the kernel only remembers that it is to be freed,
        // and does so when the last one closes it.
        poll_until(deadline, || match status(&OpenOptions::new().read(true).open(&path)?) {
            Err(Errno::NXIO) => Ok(Some(())),
            // Someone else has it already.
            Ok(other) if other != backing => Ok(Some(())),
            Ok(_) => Ok(None),
            Err(errno) => Err(errno.into()),
        })
    }
}

/// Opens a device node, which is made first where no device manager did.
fn open_node(path: &Path, kind: FileType, number: impl Fn() -> u64) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, number()) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(errno) => Err(errno.into()),
            }
        }
        result => result,
    }
}

fn get_free(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
    let number = unsafe { ioctl(control, Plain::<LOOP_CTL_GET_FREE>) }?;
    u32::try_from(number).map_err(io::Error::other)
}

fn clear(device: &File) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    match unsafe { ioctl(device, Plain::<LOOP_CLR_FD>) } {
        Ok(_) | Err(Errno::NXIO) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn configure(
    device: &File,
    backing: &File,
    generation: u64,
    access: Access,
) -> rustix::io::Result<()> {
    let mut name = [0; 64];
    let text = format!("puck-{generation}");
    name[..text.len()].copy_from_slice(text.as_bytes());
    let mut flags = FLAG_AUTOCLEAR | FLAG_DIRECT_IO;
    if access == Access::ReadOnly {
        flags |= FLAG_READ_ONLY;
    }
    let info = LoopInfo { flags, file_name: name, ..LoopInfo::EMPTY };
    let fd = u32::try_from(backing.as_raw_fd()).expect("descriptors are not negative");
    let config = LoopConfig { fd, block_size: SECTOR_BYTES, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which `LoopConfig` is.
    unsafe { ioctl(device, Pointer::<LOOP_CONFIGURE, LoopConfig>(config)) }.map(drop)
}

fn read_ahead(device: &File) -> io::Result<()> {
    // SAFETY: BLKRASET takes a number, of sectors of 512 bytes.
    unsafe { ioctl(device, IntegerSetter::<BLKRASET>::new_usize(READ_AHEAD_BYTES / 512)) }?;
    Ok(())
}

/// Device and inode of what is behind a loop device; `ENXIO` if it is free.
fn status(device: &File) -> rustix::io::Result<(u64, u64)> {
    // SAFETY: LOOP_GET_STATUS64 writes a `loop_info64`, which `LoopInfo` is.
    let info = unsafe { ioctl(device, Pointer::<LOOP_GET_STATUS64, LoopInfo>(LoopInfo::EMPTY)) }?;
    Ok((info.device, info.inode))
}

const BLKRASET: Opcode = 0x1262;
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () =
    assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304, "the kernel's layouts");

/// An ioctl without an argument whose return value matters.
struct Plain<const OPCODE: Opcode>;

// SAFETY: The kernel ignores the argument of these opcodes and writes nothing.
unsafe impl<const OPCODE: Opcode> Ioctl for Plain<OPCODE> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _pointer: *mut c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(output)
    }
}

/// An ioctl with a pointer to a structure that the kernel reads or writes.
struct Pointer<const OPCODE: Opcode, T>(T);

// SAFETY: Whoever makes one pairs the opcode with the structure that the kernel expects for it.
unsafe impl<const OPCODE: Opcode, T: Copy> Ioctl for Pointer<OPCODE, T> {
    type Output = T;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_output: IoctlOutput, pointer: *mut c_void) -> rustix::io::Result<T> {
        // SAFETY: The pointer is the one of `as_ptr`, to a valid `T`, which the kernel may have overwritten with another.
        Ok(unsafe { *pointer.cast::<T>() })
    }
}
