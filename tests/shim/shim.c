/* What a crash or a bad disk does, at a chosen moment: preloaded into a broker by tests, never built into it.
 *
 * BROKER_SHIM names a file of 64-bit integers, which the test maps as this process does, so that either side sees what
 * the other writes while the process runs:
 *
 *   0  kill at the point of this number (1 is the first; 0: never)
 *   1  0: before the point's own work is done, 1: after it
 *   2  how many points there were: every fsync and fdatasync, and every send to a TCP socket
 *   3  fail from the write of this number on (0: never): writes, truncations and syncs of files whose path has `.db`
 *   4  the errno they fail with
 *   5  how many such writes there were
 *   8+ the kind of each point: 'f' sync, 's' send
 *
 * The file is looked for once in each process, so a child that was forked before it was named can have its own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL_AT, KILL_AFTER, POINTS, FAIL_FROM, FAIL_ERRNO, WRITES, KINDS = 8, WORDS = 4096 };

static volatile int64_t *plan;
static pid_t looked_in;

static volatile int64_t *plan_of_this_process(void) {
    if (looked_in != getpid()) {
        int kept = errno;
        const char *path = getenv("BROKER_SHIM");
        plan = NULL;
        if (path != NULL) {
            int fd = open(path, O_RDWR | O_CLOEXEC);
            void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (mapped != MAP_FAILED) plan = mapped;
            if (fd >= 0) close(fd);
            looked_in = getpid();
        }
        errno = kept;
    }
    return plan;
}

/* The number of this point; does not come back when it is the one to die before. */
static int64_t before(char kind) {
    volatile int64_t *p = plan_of_this_process();
    if (p == NULL) return 0;
    int64_t number = __atomic_add_fetch(&p[POINTS], 1, __ATOMIC_SEQ_CST);
    if (KINDS + number < WORDS) p[KINDS + number - 1] = kind;
    if (number == p[KILL_AT] && !p[KILL_AFTER]) kill(getpid(), SIGKILL), pause();
    return number;
}

static void after(int64_t number) {
    if (number && number == plan[KILL_AT] && plan[KILL_AFTER]) kill(getpid(), SIGKILL), pause();
}

static int is_tcp(int fd) {
    int domain = 0, kept = errno;
    socklen_t size = sizeof domain;
    int found = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && (domain == AF_INET || domain == AF_INET6);
    errno = kept;
    return found;
}

/* Whether this write of a database file is to fail; errno is set then. */
static int fails(int fd) {
    volatile int64_t *p = plan_of_this_process();
    char link[64] = "/proc/self/fd/", path[1024];
    int kept = errno, at = 14;
    char digits[16];
    int n = 0;
    if (p == NULL || p[FAIL_ERRNO] == 0) return 0;
    for (int rest = fd; n == 0 || rest > 0; rest /= 10) digits[n++] = (char)('0' + rest % 10);
    while (n > 0) link[at++] = digits[--n];
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (size < 0) return 0;
    path[size] = 0;
    if (strstr(path, ".db") == NULL || strstr(path, ".db-shm") != NULL || strstr(path, ".db.") != NULL) return 0;
    int64_t number = __atomic_add_fetch(&p[WRITES], 1, __ATOMIC_SEQ_CST);
    if (p[FAIL_FROM] == 0 || number < p[FAIL_FROM]) return 0;
    errno = (int)p[FAIL_ERRNO];
    return 1;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (real == NULL) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define SYNC(name) \
    int name(int fd) { \
        REAL(int, name, int); \
        int64_t number = before('f'); \
        int result = fails(fd) ? -1 : real(fd); \
        after(number); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

#define SENDING(declared, name, call, ...) \
    ssize_t name declared { \
        REAL(ssize_t, name, __VA_ARGS__); \
        int64_t number = is_tcp(fd) ? before('s') : 0; \
        ssize_t result = number == 0 && fails(fd) ? -1 : real call; \
        after(number); \
        return result; \
    }
SENDING((int fd, const void *bytes, size_t size, int flags), send, (fd, bytes, size, flags), int, const void *, size_t, int)
SENDING((int fd, const struct msghdr *message, int flags), sendmsg, (fd, message, flags), int, const struct msghdr *, int)
SENDING((int fd, const void *bytes, size_t size), write, (fd, bytes, size), int, const void *, size_t)
SENDING((int fd, const struct iovec *parts, int count), writev, (fd, parts, count), int, const struct iovec *, int)

#define WRITING(name, offset) \
    ssize_t name(int fd, const void *bytes, size_t size, offset at) { \
        REAL(ssize_t, name, int, const void *, size_t, offset); \
        return fails(fd) ? -1 : real(fd, bytes, size, at); \
    }
WRITING(pwrite, off_t)
WRITING(pwrite64, off64_t)

#define CUTTING(name, offset) \
    int name(int fd, offset size) { \
        REAL(int, name, int, offset); \
        return fails(fd) ? -1 : real(fd, size); \
    }
CUTTING(ftruncate, off_t)
CUTTING(ftruncate64, off64_t)
