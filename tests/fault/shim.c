/*
 * Stands between a program and the C library, and makes the n-th call that changes a file go wrong.
 *
 *   SHIM_DIR    only files below this directory count
 *   SHIM_MODE   count | kill | full
 *   SHIM_AT     n, from 1
 *   SHIM_COUNT  where to write, at exit, how many calls there were
 *
 * kill: the process is gone before the n-th call; if it is a write and n is even, half of it is done.
 * full: half of the n-th write is done, then the disk is full: whatever would need more of it fails with ENOSPC.
 *       What frees space still works.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL, FULL };

static enum mode mode;
static long at, counter;
static const char *directory, *count_file;

__attribute__((constructor)) static void begin(void)
{
	const char *wanted = getenv("SHIM_MODE"), *n = getenv("SHIM_AT");
	directory = getenv("SHIM_DIR");
	count_file = getenv("SHIM_COUNT");
	at = n ? atol(n) : 0;
	if (!wanted || !directory)
		return;
	mode = !strcmp(wanted, "kill") ? KILL : !strcmp(wanted, "full") ? FULL : COUNT;
}

__attribute__((destructor)) static void end(void)
{
	FILE *file = mode != OFF && count_file ? fopen(count_file, "w") : NULL;
	if (file) {
		fprintf(file, "%ld\n", counter);
		fclose(file);
	}
}

static int is_below(const char *path)
{
	return !strncmp(path, directory, strlen(directory));
}

static int is_ours(int fd)
{
	char link[64], path[PATH_MAX];
	if (mode == OFF)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	if (length <= 0)
		return 0;
	path[length] = 0;
	return is_below(path);
}

static long next(void)
{
	return __atomic_add_fetch(&counter, 1, __ATOMIC_SEQ_CST);
}

static void die(void)
{
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

/* What is to be done with a write: all of it, half of it, or nothing. */
enum fate { ALL, HALF, NONE };

static enum fate fate_of_write(void)
{
	long n = next();
	if (mode == KILL && n == at)
		return n % 2 ? NONE : HALF;
	if (mode == FULL && n >= at)
		return n == at ? HALF : NONE;
	return ALL;
}

#define REAL(type, name, ...)                                          \
	static type (*real)(__VA_ARGS__);                              \
	if (!real)                                                     \
		real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define WRITING(call_all, call_half, size)                             \
	do {                                                           \
		if (!is_ours(fd))                                      \
			return call_all;                               \
		switch (fate_of_write()) {                             \
		case ALL:                                              \
			return call_all;                               \
		case HALF:                                             \
			if ((size) > 1) {                              \
				ssize_t done = call_half;              \
				if (mode == KILL)                      \
					die();                         \
				return done;                           \
			}                                              \
			/* fall through */                             \
		case NONE:                                             \
			if (mode == KILL)                              \
				die();                                 \
			errno = ENOSPC;                                \
			return -1;                                     \
		}                                                      \
		return -1;                                             \
	} while (0)

ssize_t write(int fd, const void *buffer, size_t size)
{
	REAL(ssize_t, write, int, const void *, size_t);
	WRITING(real(fd, buffer, size), real(fd, buffer, size / 2), size);
}

ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset)
{
	REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
	WRITING(real(fd, buffer, size, offset), real(fd, buffer, size / 2, offset), size);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset)
{
	REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
	WRITING(real(fd, buffer, size, offset), real(fd, buffer, size / 2, offset), size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	REAL(ssize_t, writev, int, const struct iovec *, int);
	WRITING(real(fd, parts, count), real(fd, parts, count / 2), count);
}

/* Calls that need room, or none, and do all or nothing. */
static int goes_wrong(int needs_room)
{
	long n = next();
	if (mode == KILL && n == at)
		die();
	if (mode == FULL && n >= at && needs_room) {
		errno = ENOSPC;
		return 1;
	}
	return 0;
}

int fsync(int fd)
{
	REAL(int, fsync, int);
	return is_ours(fd) && goes_wrong(1) ? -1 : real(fd);
}

int fdatasync(int fd)
{
	REAL(int, fdatasync, int);
	return is_ours(fd) && goes_wrong(1) ? -1 : real(fd);
}

static int grows(int fd, off64_t size)
{
	struct stat now;
	return fstat(fd, &now) == 0 && size > now.st_size;
}

int ftruncate(int fd, off_t size)
{
	REAL(int, ftruncate, int, off_t);
	return is_ours(fd) && goes_wrong(grows(fd, size)) ? -1 : real(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
	REAL(int, ftruncate64, int, off64_t);
	return is_ours(fd) && goes_wrong(grows(fd, size)) ? -1 : real(fd, size);
}

int unlink(const char *path)
{
	REAL(int, unlink, const char *);
	return mode != OFF && is_below(path) && goes_wrong(0) ? -1 : real(path);
}

int rename(const char *from, const char *to)
{
	REAL(int, rename, const char *, const char *);
	return mode != OFF && is_below(to) && goes_wrong(0) ? -1 : real(from, to);
}
