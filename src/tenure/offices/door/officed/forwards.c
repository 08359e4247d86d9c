/* Forwards: what the office can reach, each a port of its loopback spliced to a socket of the doorway. Those of the command
 * line last; of the others the server declares all that there are whenever one comes or goes, together with their names. */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FORWARDS_MAX = 96, PATH_BYTES = 256 };

/* Only main, and then only the one thread that accepts, touches the table. */
static struct forward {
    char *text, path[PATH_BYTES];
    int listener, lasting;
    unsigned serial;
} forwards[FORWARDS_MAX];
static int forwards_n;

struct forwarded {
    int client, ended;
    unsigned serial; /* its forward's */
    char path[PATH_BYTES];
    struct forwarded *next;
};

struct declaration {
    struct request *r;
    char *at; /* what could not be done, a line each */
    size_t room, n;
    int done;
};

static struct forwarded *connected;
static struct declaration *declared;
static int declared_event;
static pthread_mutex_t forwards_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t forwards_changed;

/* A server that is being restarted is a pause for the programs in the office, not an error. */
static int dial_patiently(struct forwarded *f) {
    int fd, wait = REDIAL_MS_MIN;
    for (int64_t until = now_ms() + FORWARD_PATIENCE_MS; (fd = dial_server(f->path)) < 0 && now_ms() < until;) {
        if (wait_while_drained()) until = now_ms() + FORWARD_PATIENCE_MS, wait = REDIAL_MS_MIN;
        if (__atomic_load_n(&f->ended, __ATOMIC_RELAXED)) break;
        sleep_ms(wait);
        wait = wait * 2 > REDIAL_MS_MAX ? REDIAL_MS_MAX : wait * 2;
    }
    return fd;
}

static void *run_forwarded(void *arg) {
    struct forwarded *f = arg;
    int one = 1, up = dial_patiently(f);
    setsockopt(f->client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (up >= 0) pair_line(up, f->client), splice_both(f->client, up), hang_up(up);
    pthread_mutex_lock(&forwards_lock);
    for (struct forwarded **at = &connected; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    close(f->client);
    pthread_mutex_unlock(&forwards_lock);
    free(f);
    leave_session();
    return NULL;
}

static void accept_one(struct forward *forward) {
    int client = accept4(forward->listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) sleep_ms(10);
        return;
    }
    struct forwarded *f = calloc(1, sizeof *f);
    if (!f || !enter_session()) {
        free(f), close(client);
        return;
    }
    f->client = client, f->serial = forward->serial;
    memcpy(f->path, forward->path, sizeof f->path);
    pthread_mutex_lock(&forwards_lock);
    f->next = connected, connected = f;
    if (spawn_thread(run_forwarded, f)) connected = f->next, close(client), free(f), leave_session();
    pthread_mutex_unlock(&forwards_lock);
}

/* NULL, or why not. `directory` is what a relative socket's name is completed with; NULL when it is a path. */
static const char *add_forward(const char *text, const char *directory) { /* ADDRESS:PORT=SOCKET */
    static unsigned serials;
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[64];
    unsigned port;
    int at = 0, one = 1;
    if (forwards_n == FORWARDS_MAX) return "too many";
    if (sscanf(text, "%63[^:]:%u=%n", host, &port, &at) != 2 || !at || !port || port > 65535 || inet_pton(AF_INET, host, &a.sin_addr) != 1)
        return "not ADDRESS:PORT=SOCKET";
    if (directory && (!text[at] || strchr(text + at, '/'))) return "not a socket of the doorway";
    struct forward *f = &forwards[forwards_n];
    int n = directory ? snprintf(f->path, sizeof f->path, "%.*s%s", (int)(strrchr(directory, '/') + 1 - directory), directory, text + at)
                      : snprintf(f->path, sizeof f->path, "%s", text + at);
    if (n >= (int)sizeof f->path) return "too long";
    a.sin_port = htons((uint16_t)port);
    f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(f->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(f->listener, (void *)&a, sizeof a) || listen(f->listener, 128) || !(f->text = strdup(text))) {
        const char *why = strerror(errno);
        close(f->listener);
        return why;
    }
    f->lasting = !directory, f->serial = ++serials, forwards_n++;
    return NULL;
}

static void end_forward(struct forward *f) {
    close(f->listener), free(f->text);
    pthread_mutex_lock(&forwards_lock);
    for (struct forwarded *c = connected; c; c = c->next)
        if (c->serial == f->serial) __atomic_store_n(&c->ended, 1, __ATOMIC_RELAXED), shutdown(c->client, SHUT_RDWR);
    pthread_mutex_unlock(&forwards_lock);
    *f = forwards[--forwards_n];
}

static int is_declared(struct request *r, const char *text) {
    for (int i = 0; i < r->argc; i++)
        if (!strcmp(r->argv[i], text)) return 1;
    return 0;
}

static int is_forwarded(const char *text) {
    for (int i = 0; i < forwards_n; i++)
        if (!strcmp(forwards[i].text, text)) return 1;
    return 0;
}

/* First what ends: what begins may have its address. */
static void carry_out(struct declaration *d) {
    for (int i = forwards_n - 1; i >= 0; i--)
        if (!forwards[i].lasting && !is_declared(d->r, forwards[i].text)) end_forward(&forwards[i]);
    for (int i = 0; i < d->r->argc; i++) {
        const char *text = d->r->argv[i], *why = is_forwarded(text) ? NULL : add_forward(text, door_path);
        if (why) d->n += add_line(d->at + d->n, d->room - d->n, "forward %.120s %.100s", text, why);
    }
}

static void *keep_forwarding(void *unused) {
    (void)unused;
    for (;;) {
        struct pollfd p[FORWARDS_MAX + 1] = {{declared_event, POLLIN, 0}};
        int n = forwards_n;
        for (int i = 0; i < n; i++) p[i + 1] = (struct pollfd){forwards[i].listener, POLLIN, 0};
        if (poll(p, (nfds_t)n + 1, -1) <= 0) continue;
        for (int i = 0; i < n; i++)
            if (p[i + 1].revents) accept_one(&forwards[i]);
        if (!p[0].revents) continue;
        eventfd_t count;
        eventfd_read(declared_event, &count);
        pthread_mutex_lock(&forwards_lock);
        struct declaration *d = declared && !declared->done ? declared : NULL;
        pthread_mutex_unlock(&forwards_lock);
        if (!d) continue;
        carry_out(d);
        pthread_mutex_lock(&forwards_lock);
        d->done = 1;
        pthread_cond_broadcast(&forwards_changed);
        pthread_mutex_unlock(&forwards_lock);
    }
    return NULL;
}

/* 0, or an errno. Another file in its place, so that nobody reads half of it; none when it is so already. */
static int write_hosts(const char *text) {
    char fresh[PATH_BYTES + 8], *there = malloc(REQUEST_BYTES_MAX);
    size_t size = strlen(text);
    int fd = open(hosts_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 || !there ? -1 : read(fd, there, REQUEST_BYTES_MAX);
    int same = n == (ssize_t)size && !memcmp(there, text, size);
    free(there);
    if (fd >= 0) close(fd);
    if (same) return 0;
    snprintf(fresh, sizeof fresh, "%.255s.tenure", hosts_path);
    unlink(fresh);
    if ((fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) < 0) return errno;
    int failed = write_all(fd, text, size) ? errno : 0;
    close(fd);
    if (!failed && rename(fresh, hosts_path)) failed = errno;
    if (failed) unlink(fresh);
    return failed;
}

/* Answers f with what could not be done, a line each; when it is empty, the office has these forwards and names, and no
 * connection of one that went. */
int declare_forwards(int conn, struct request *r) {
    char *report = malloc(CHUNK_BYTES);
    if (!report) return -1;
    struct declaration d = {r, report, CHUNK_BYTES, 0, 0};
    pthread_mutex_lock(&forwards_lock);
    while (declared) pthread_cond_wait(&forwards_changed, &forwards_lock);
    declared = &d;
    eventfd_write(declared_event, 1);
    while (!d.done) pthread_cond_wait(&forwards_changed, &forwards_lock);
    int why = r->hosts && hosts_path ? write_hosts(r->hosts) : 0;
    declared = NULL;
    pthread_cond_broadcast(&forwards_changed);
    pthread_mutex_unlock(&forwards_lock);
    if (why) d.n += add_line(report + d.n, d.room - d.n, "hosts %s", strerror(why));
    int answered = send_frame(conn, 'f', report, (uint32_t)d.n);
    free(report);
    return answered;
}

void start_forward(const char *text) {
    const char *why = add_forward(text, NULL);
    if (why) fprintf(stderr, "officed: cannot forward %s: %s\n", text, why);
}

void start_forwarding(void) {
    init_cond(&forwards_changed);
    declared_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    spawn_thread(keep_forwarding, NULL);
}
