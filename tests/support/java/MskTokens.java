import java.net.URI;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import javax.security.auth.callback.Callback;
import javax.security.auth.login.AppConfigurationEntry;
import org.apache.kafka.common.security.auth.AuthenticateCallbackHandler;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerToken;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerTokenCallback;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallback;

/**
 * What MSK does with a token of its IAM login: a request to connect, presigned by AWS's Signature Version 4, in base64.
 * Whoever signs must have the secret key of this listener (the option `secretKey` of its JAAS entry) and a session token
 * of the form `until-<epoch milliseconds>`, at which the credentials end. All of them are the user `iam`. It takes the place
 * of both of Kafka's callbacks on the listener.
 */
public final class MskTokens implements AuthenticateCallbackHandler {
    private static final DateTimeFormatter DATE =
            DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'").withZone(ZoneOffset.UTC);
    private String secretKey;
    private String region;

    @Override
    public void configure(Map<String, ?> configs, String mechanism, List<AppConfigurationEntry> entries) {
        secretKey = (String) entries.get(0).getOptions().get("secretKey");
        region = (String) entries.get(0).getOptions().get("region");
    }

    @Override
    public void handle(Callback[] callbacks) {
        for (Callback callback : callbacks) {
            if (callback instanceof OAuthBearerValidatorCallback validator) {
                try {
                    validator.token(check(validator.tokenValue()));
                } catch (Exception e) {
                    System.out.println("MskTokens refuses: " + e.getMessage());
                    validator.error("invalid_token", null, null);
                }
            } else if (callback instanceof OAuthBearerTokenCallback login) {
                login.token(null); // the broker itself logs in nowhere
            }
        }
    }

    @Override
    public void close() {}

    private OAuthBearerToken check(String value) throws Exception {
        URI uri = URI.create(new String(Base64.getUrlDecoder().decode(value), StandardCharsets.UTF_8));
        String host = "kafka." + region + ".amazonaws.com";
        require(uri.getScheme().equals("https") && uri.getHost().equals(host) && uri.getPath().equals("/"), "the address");
        Map<String, String> parameters = new TreeMap<>();
        for (String pair : uri.getRawQuery().split("&")) {
            String[] parts = pair.split("=", 2);
            require(parameters.put(decoded(parts[0]), decoded(parts[1])) == null, "a parameter twice");
        }
        String signature = parameters.remove("X-Amz-Signature");
        require(parameters.remove("User-Agent") != null, "the user agent, which is not signed");
        require(parameters.get("Action").equals("kafka-cluster:Connect"), "the action");
        require(parameters.get("X-Amz-Algorithm").equals("AWS4-HMAC-SHA256"), "the algorithm");
        require(parameters.get("X-Amz-SignedHeaders").equals("host"), "the signed headers");
        String date = parameters.get("X-Amz-Date");
        String scope = date.substring(0, 8) + "/" + region + "/kafka-cluster/aws4_request";
        require(parameters.get("X-Amz-Credential").endsWith("/" + scope), "the scope");

        String query = parameters.entrySet().stream()
                .map(it -> encoded(it.getKey()) + "=" + encoded(it.getValue()))
                .collect(Collectors.joining("&"));
        String request = "GET\n/\n" + query + "\nhost:" + host + "\n\nhost\n" + hash("");
        String text = "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hash(request);
        byte[] key = ("AWS4" + secretKey).getBytes(StandardCharsets.UTF_8);
        for (String part : scope.split("/")) {
            key = mac(key, part);
        }
        require(HexFormat.of().formatHex(mac(key, text)).equals(signature), "the signature");

        long begins = Instant.from(DATE.parse(date)).toEpochMilli();
        long ends = begins + 1000 * Long.parseLong(parameters.get("X-Amz-Expires"));
        require(ends - begins == 900_000, "MSK's 15 minutes");
        String session = parameters.get("X-Amz-Security-Token");
        long until = Math.min(ends, Long.parseLong(session.substring("until-".length())));
        long now = System.currentTimeMillis();
        require(begins <= now + 1000 && now < until, "the time: it ended at " + until);
        return new OAuthBearerToken() {
            @Override public String value() { return value; }
            @Override public Set<String> scope() { return Set.of(); }
            @Override public long lifetimeMs() { return until; }
            @Override public String principalName() { return "iam"; }
            @Override public Long startTimeMs() { return begins; }
        };
    }

    private static void require(boolean holds, String what) {
        if (!holds) {
            throw new IllegalArgumentException(what);
        }
    }

    private static String decoded(String text) {
        return URLDecoder.decode(text, StandardCharsets.UTF_8);
    }

    private static String encoded(String text) {
        String encoded = URLEncoder.encode(text, StandardCharsets.UTF_8);
        return encoded.replace("+", "%20").replace("*", "%2A").replace("%7E", "~");
    }

    private static String hash(String text) throws Exception {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }

    private static byte[] mac(byte[] key, String text) throws Exception {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(text.getBytes(StandardCharsets.UTF_8));
    }
}
